"""Tuples of tiles in kernels: loaded, stored, selected and added as one."""

import triton
import triton.language as tl


@triton.jit
def load(base, offsets, mask, count: tl.constexpr, stride, dtype: tl.constexpr):
    """`count` tiles, `stride` apart, as a tuple."""
    tiles = ()
    for k in tl.static_range(count):
        tiles = tiles + (tl.load(base + k * stride + offsets, mask=mask, other=0).to(dtype),)
    return tiles


@triton.jit
def store(base, offsets, mask, tiles, start: tl.constexpr, stride):
    """The tiles from the start-th on, `stride` apart."""
    for k in tl.static_range(start, len(tiles)):
        value = tiles[k].to(base.dtype.element_ty)
        tl.store(base + (k - start) * stride + offsets, value, mask=mask)


@triton.jit
def select(condition, a, b):
    """Where the condition holds a's tiles, else b's."""
    tiles = ()
    for k in tl.static_range(len(a)):
        tiles = tiles + (tl.where(condition, a[k], b[k]),)
    return tiles


@triton.jit
def zeros_like(tiles):
    out = ()
    for k in tl.static_range(len(tiles)):
        out = out + (tl.zeros_like(tiles[k]),)
    return out


@triton.jit
def nothing(tiles):
    """What adds nothing: the compiler removes the addition of -0, but not of 0."""
    out = ()
    for k in tl.static_range(len(tiles)):
        out = out + (tl.full(tiles[k].shape, -0.0, tiles[k].dtype),)
    return out


@triton.jit
def add(a, b):
    out = ()
    for k in tl.static_range(len(a)):
        out = out + (a[k] + b[k],)
    return out


@triton.jit
def accumulate(sums, tiles):
    """Adds each tile's sum over its rows."""
    out = ()
    for k in tl.static_range(len(sums)):
        out = out + (sums[k] + tl.sum(tiles[k], 0),)
    return out
