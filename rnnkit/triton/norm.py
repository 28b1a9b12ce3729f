"""Layer normalisation of tiles, over their columns; several are normalised together.

`u` says what the columns are: which of them exist (as a row), how many do, and the eps; a
fourth part says that results have 16 bits. Tiles must be zero in columns that do not exist.
"""

import triton
import triton.language as tl


@triton.jit
def mean(tiles, u):
    """The mean of each row, over all tiles."""
    total = tl.sum(tiles[0], 1)
    for k in tl.static_range(1, len(tiles)):
        total += tl.sum(tiles[k], 1)
    return (total / (u[1] * len(tiles)))[:, None]


@triton.jit
def normalise(tiles, u):
    """(v - mean) / sqrt(var + eps) of each tile, and the row's 1 / sqrt."""
    m = mean(tiles, u)
    centred, squares = (), ()
    for k in tl.static_range(len(tiles)):
        v = tl.where(u[0], tiles[k] - m, 0.0)
        centred, squares = centred + (v,), squares + (v * v,)
    scale = 1.0 / tl.sqrt(mean(squares, u) + u[2])
    out = ()
    for k in tl.static_range(len(tiles)):
        out = out + (centred[k] * scale,)
    return out, scale


@triton.jit
def normalise_vjp(n, scale, dn, u):
    """The gradient of v, given the results of `normalise` and the gradients of the first."""
    products = ()
    for k in tl.static_range(len(n)):
        products = products + (dn[k] * n[k],)
    m, along = mean(dn, u), mean(products, u)
    out = ()
    for k in tl.static_range(len(n)):
        out = out + (tl.where(u[0], scale * (dn[k] - m - n[k] * along), 0.0),)
    return out
