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
    """The sums of the first tiles, as many as b has."""
    out = ()
    for k in tl.static_range(len(b)):
        out = out + (a[k] + b[k],)
    return out


@triton.jit
def accumulate(sums, tiles):
    """Adds each tile's sum over its rows."""
    out = ()
    for k in tl.static_range(len(sums)):
        out = out + (sums[k] + tl.sum(tiles[k], 0),)
    return out


@triton.jit
def affine(tiles, gain, bias):
    """Each tile times its row of gain, plus its row of bias; either may be absent."""
    out = ()
    for k in tl.static_range(len(tiles)):
        v = tiles[k] * gain[k][None, :] if len(gain) else tiles[k]
        out = out + (v + bias[k][None, :] if len(bias) else v,)
    return out


@triton.jit
def blend(share, old, new):
    """share of the old and the rest of the new, for as many tiles as there are shares."""
    out = ()
    for k in tl.static_range(len(share)):
        out = out + (share[k] * old[k] + (1 - share[k]) * new[k],)
    return out + new[len(share) :]


@triton.jit
def add_share(share, tiles, to):
    """The share of the tiles added to others, for as many as there are shares."""
    out = ()
    for k in tl.static_range(len(share)):
        out = out + (to[k] + share[k] * tiles[k],)
    return out + to[len(share) :]
