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
def store(base, stride, pitch, cols, bounds, tiles, AT_ONCE: tl.constexpr):
    """The tiles, `stride` apart, 1 or 4 at once; their rows are `pitch` apart.

    bounds: how many rows exist, from the first, and columns.
    """
    for k in tl.static_range(0, len(tiles), AT_ONCE):
        store_joined(base + k * stride, stride, pitch, cols, bounds, tiles[k : k + AT_ONCE])


@triton.jit
def store_joined(base, stride, pitch, cols, bounds, tiles):
    """Up to four tiles at once. base: a pointer, or one for each of two tiles (`either`)."""
    count: tl.constexpr = len(tiles)
    n: tl.constexpr = 4 if count > 2 else count
    rows: tl.constexpr = tiles[0].shape[0]
    width: tl.constexpr = tiles[0].shape[1]
    if n == 1:
        row, col, value = tl.arange(0, rows)[:, None], cols[None, :], tiles[0]
        ok = (row < bounds[0]) & (col < bounds[1])
        at = row * pitch + col
    else:
        if n == 2:
            value = tl.join(tiles[0], tiles[1])
        else:
            value = tl.join(tl.join(tiles[0], tiles[2]), tl.join(tiles[1], tiles[count - 1]))
        # The slowest dimension are neighbouring rows: these are in one thread here only, so that
        # the change of layout is one pass through shared memory. What was in one thread before,
        # and is again, would have passes of its own.
        value = tl.permute(tl.reshape(value, (rows // n, n, width, n)), (1, 3, 0, 2))
        row = (tl.arange(0, n)[:, None] + tl.arange(0, rows // n)[None, :] * n)[:, None, :, None]
        k, col = tl.arange(0, n)[None, :, None, None], cols[None, None, None, :]
        ok = (row < bounds[0]) & (col < bounds[1]) & (k < count)
        at = row * pitch + k * stride + col
    tl.store(base + at, value.to(base.dtype.element_ty), mask=ok)


@triton.jit
def either(a, b):
    """The places of two joined tiles."""
    return tl.where(tl.arange(0, 2)[None, :, None, None] == 0, a, b)


@triton.jit
def store_rows(base, cols, mask, rows, stride):
    """The rows, `stride` apart."""
    for k in tl.static_range(len(rows)):
        tl.store(base + k * stride + cols, rows[k].to(base.dtype.element_ty), mask=mask)


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
        out = out + (tl.zeros_like(tiles[k]) * -1.0,)  # tl.full would make 0 of -0
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
