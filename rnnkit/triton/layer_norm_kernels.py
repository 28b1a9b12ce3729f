"""The kernels of layer normalisation: one forward, and three of its gradient.

A program owns BM rows. With WHOLE its tile has all columns of a row; without, it walks them BN at a
time. A tile's shape depends on N alone, so a row's result does not depend on the rows beside it.

Pointers are to rows with dense columns: of x, residual, dy, dtotal and v, with strides; of all
others, dense. Absent ones are None. Arithmetic is in DTYPE.
"""

import triton
import triton.language as tl

from .norm import mean, normalise_vjp
from .tiles import affine, load


@triton.jit
def place(index, z, C: tl.constexpr):
    """The first row of the index-th tile, rows from the first, and which of them exist."""
    row = tl.cast(index, tl.int64) * C.BM
    rows = tl.arange(0, C.BM)
    return row, rows, row + rows < z.M


@triton.jit
def tile(base, stride, row, rows, cols):
    """Pointers to a tile: 32-bit offsets do from its first row; 64-bit ones cost registers."""
    return base + row * stride + ((rows * stride)[:, None] + cols[None, :])


@triton.jit
def parameter(p, cols, real, C: tl.constexpr):
    """A parameter's columns as a tuple of one, or of none for an absent one."""
    return load(p, cols, real, 0 if p is None else 1, 0, C.DTYPE)


@triton.jit
def summed(a, z, row, rows, cols, mask, C: tl.constexpr):
    """v: x, or x + residual as rounded to the dtype of total."""
    v = tl.load(tile(a.x, z.x, row, rows, cols), mask=mask, other=0).to(C.DTYPE)
    if a.residual is not None:
        r = tl.load(tile(a.residual, z.residual, row, rows, cols), mask=mask, other=0)
        v = (v + r.to(C.DTYPE)).to(a.total.dtype.element_ty).to(C.DTYPE)
    return v


@triton.jit
def finish(a, z, v, m, scale, row, rows, cols, mask, ACTIVATE: tl.constexpr, C: tl.constexpr):
    """Stores y, and total where there is one."""
    if a.residual is not None:
        total = v.to(a.total.dtype.element_ty)
        tl.store(tile(a.total, z.N, row, rows, cols), total, mask=mask)
    gain, bias = parameter(a.weight, cols, cols < z.N, C), parameter(a.bias, cols, cols < z.N, C)
    y = ACTIVATE(affine(((v - m) * scale,), gain, bias))
    tl.store(tile(a.y, z.N, row, rows, cols), y.to(a.y.dtype.element_ty), mask=mask)


@triton.jit
def statistics_in_chunks(a, z, row, rows, exists, C: tl.constexpr):
    """Mean and variance of rows in one pass, merged chunk by chunk.

    Chan, Golub, LeVeque: "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979, equations 2.1: exact where the sum of squares minus the mean's would cancel.
    """
    m, squares = tl.zeros((C.BM, 1), C.DTYPE), tl.zeros((C.BM, 1), C.DTYPE)
    for first in tl.range(0, z.N, C.BN):
        cols = first + tl.arange(0, C.BN)
        mask = exists[:, None] & (cols < z.N)[None, :]
        v = summed(a, z, row, rows, cols, mask, C)
        before, count = tl.cast(first, C.DTYPE), tl.cast(tl.minimum(z.N - first, C.BN), C.DTYPE)
        share = count / (before + count)
        here = tl.sum(v, 1)[:, None] / count
        d, gap = tl.where(mask, v - here, 0.0), here - m
        squares += tl.sum(d * d, 1)[:, None] + gap * gap * (before * share)
        m += gap * share
    return m, squares / z.N


@triton.jit
def layer_norm_kernel(a, z, ACTIVATE: tl.constexpr, C: tl.constexpr):
    """`a: Forward`: y, total and stats."""
    row, rows, exists = place(tl.program_id(0), z, C)
    cols = tl.arange(0, C.BN)
    mask = exists[:, None] & (cols < z.N)[None, :]
    if C.WHOLE:
        u = (mask, z.N)
        v = summed(a, z, row, rows, cols, mask, C)
        m = mean((v,), u)
        d = tl.where(mask, v - m, 0.0)
        variance = mean((d * d,), u)
    else:
        m, variance = statistics_in_chunks(a, z, row, rows, exists, C)
    scale = 1.0 / tl.sqrt(variance + C.EPS)
    at = a.stats + row + rows[:, None]
    tl.store(at, m, mask=exists[:, None])
    tl.store(at + z.M, scale, mask=exists[:, None])
    if C.WHOLE:
        finish(a, z, v, m, scale, row, rows, cols, mask, ACTIVATE, C)
    else:
        for first in tl.range(0, z.N, C.BN):
            c = first + cols
            inside = exists[:, None] & (c < z.N)[None, :]
            v = summed(a, z, row, rows, c, inside, C)
            finish(a, z, v, m, scale, row, rows, c, inside, ACTIVATE, C)


@triton.jit
def statistics(a, z, row, rows, exists):
    """The mean and the scale of rows, as forward found them."""
    at, ok = a.stats + row + rows[:, None], exists[:, None]
    return tl.load(at, mask=ok, other=0), tl.load(at + z.M, mask=ok, other=0)


@triton.jit
def arriving(
    a, z, m, scale, gain, bias, row, rows, cols, mask, VJP: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """The normalised tile n, and the gradient of n * weight + bias."""
    v = tl.load(tile(a.v, z.v, row, rows, cols), mask=mask, other=0).to(C.DTYPE)
    dy = tl.load(tile(a.dy, z.dy, row, rows, cols), mask=mask, other=0).to(C.DTYPE)
    n = tl.where(mask, (v - m) * scale, 0.0)
    return n, VJP(affine((n,), gain, bias), dy)[0]


@triton.jit
def leave(a, z, dv, row, rows, cols, mask, C: tl.constexpr):
    """Stores dv, to which the gradient of the returned sum is added."""
    if a.dtotal is not None:
        more = tl.load(tile(a.dtotal, z.dtotal, row, rows, cols), mask=mask, other=0)
        dv += more.to(C.DTYPE)
    tl.store(tile(a.dv, z.N, row, rows, cols), dv.to(a.dv.dtype.element_ty), mask=mask)


@triton.jit
def store_sums(a, z, index, dw, db, cols):
    """A program's partial sums of the parameters' gradients: row `index` of (programs, N)."""
    at, real = tl.cast(index, tl.int64) * z.N + cols, cols < z.N
    if a.dw is not None:
        tl.store(a.dw + at, tl.sum(dw, 0), mask=real)
    if a.db is not None:
        tl.store(a.db + at, tl.sum(db, 0), mask=real)


@triton.jit
def backward_kernel(a, z, VJP: tl.constexpr, C: tl.constexpr):
    """`a: Backward` where a tile has all columns: dv, and the program's sums of dw and db."""
    cols = tl.arange(0, C.BN)
    real = cols < z.N
    gain, bias = parameter(a.weight, cols, real, C), parameter(a.bias, cols, real, C)
    dw, db = tl.zeros((C.BM, C.BN), C.DTYPE), tl.zeros((C.BM, C.BN), C.DTYPE)
    for index in tl.range(tl.program_id(0), tl.cdiv(z.M, C.BM), tl.num_programs(0)):
        row, rows, exists = place(index, z, C)
        mask = exists[:, None] & real[None, :]
        m, scale = statistics(a, z, row, rows, exists)
        n, da = arriving(a, z, m, scale, gain, bias, row, rows, cols, mask, VJP, C)
        if a.dw is not None:
            dw += da * n
        if a.db is not None:
            db += da
        dv = normalise_vjp((n,), scale, affine((da,), gain, ()), (mask, z.N))[0]
        leave(a, z, dv, row, rows, cols, mask, C)
    store_sums(a, z, tl.program_id(0), dw, db, cols)


@triton.jit
def chunk(a, z, first, m, scale, row, rows, exists, VJP: tl.constexpr, C: tl.constexpr):
    """The columns from `first` on, which elements exist, n, and the gradient of n."""
    cols = first + tl.arange(0, C.BN)
    real = cols < z.N
    gain, bias = parameter(a.weight, cols, real, C), parameter(a.bias, cols, real, C)
    mask = exists[:, None] & real[None, :]
    n, da = arriving(a, z, m, scale, gain, bias, row, rows, cols, mask, VJP, C)
    return cols, mask, n, affine((da,), gain, ())[0]


@triton.jit
def backward_chunks_kernel(a, z, VJP: tl.constexpr, C: tl.constexpr):
    """`a: Backward`: dv of rows that are too long for one tile."""
    row, rows, exists = place(tl.program_id(0), z, C)
    m, scale = statistics(a, z, row, rows, exists)
    total, along = tl.zeros((C.BM, 1), C.DTYPE), tl.zeros((C.BM, 1), C.DTYPE)
    for first in tl.range(0, z.N, C.BN):
        cols, mask, n, dn = chunk(a, z, first, m, scale, row, rows, exists, VJP, C)
        total += tl.sum(dn, 1)[:, None]
        along += tl.sum(dn * n, 1)[:, None]
    for first in tl.range(0, z.N, C.BN):
        cols, mask, n, dn = chunk(a, z, first, m, scale, row, rows, exists, VJP, C)
        leave(a, z, scale * (dn - total / z.N - n * (along / z.N)), row, rows, cols, mask, C)


@triton.jit
def sums_kernel(a, z, VJP: tl.constexpr, C: tl.constexpr):
    """`a: Backward`: partial sums of dw and db, of BN columns over every so many tiles of rows."""
    cols = tl.program_id(1) * C.BN + tl.arange(0, C.BN)
    real = cols < z.N
    gain, bias = parameter(a.weight, cols, real, C), parameter(a.bias, cols, real, C)
    dw, db = tl.zeros((C.BM, C.BN), C.DTYPE), tl.zeros((C.BM, C.BN), C.DTYPE)
    for index in tl.range(tl.program_id(0), tl.cdiv(z.M, C.BM), tl.num_programs(0)):
        row, rows, exists = place(index, z, C)
        m, scale = statistics(a, z, row, rows, exists)
        mask = exists[:, None] & real[None, :]
        n, da = arriving(a, z, m, scale, gain, bias, row, rows, cols, mask, VJP, C)
        dw += da * n
        db += da
    store_sums(a, z, tl.program_id(0), dw, db, cols)
