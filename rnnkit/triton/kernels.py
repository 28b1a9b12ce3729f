"""The recurrent kernels: one forward and one backward, for every cell.

A program owns BB batch rows of one group. With RESIDENT it holds all weights of the group on chip
and loops over the whole sequence; without, it computes one step of BH units, and the recurrent
product is a matrix product of its own before (r, forward) or after (dr, backward) the launch.

Pointers are to dense tensors, except x, m and w, which come with strides. Absent ones are None.
"""

import triton
import triton.language as tl

from ..ops import sequence
from .tiles import accumulate, add, load, nothing, select, store, zeros_like

FRESH = tl.constexpr(sequence.FRESH)
LIVE = tl.constexpr(sequence.LIVE)


@triton.jit
def place(z, C: tl.constexpr):
    """This program's first row, group, rows from the first, columns, and which of them exist."""
    row = tl.program_id(0).to(tl.int64) * C.BB
    rows = tl.arange(0, C.BB)
    cols = tl.program_id(2) * C.BH + tl.arange(0, C.BH)
    return row, tl.program_id(1).to(tl.int64), rows, cols, row + rows < z.B, cols < z.H


@triton.jit
def grid(rows, stride, cols):
    """The offsets of a tile from its first row: 32 bits do, since 64-bit ones cost registers."""
    return (rows * stride)[:, None] + cols[None, :]


@triton.jit
def time(k, n, z, C: tl.constexpr):
    """The time of group n's k-th step; bit i of REVERSE turns the i-th run of groups round."""
    back = ((C.REVERSE >> (n // (z.N // C.RUNS))) & 1) == 1
    return tl.cast(tl.where(back, z.T - 1 - k, k), tl.int64)


@triton.jit
def strided(base, strides, t, row, n, rows, cols, mask, count: tl.constexpr, dtype: tl.constexpr):
    """`count` tiles of one step of a tensor (T, B, N, count, H)."""
    here = base + t * strides[0] + row * strides[1] + n * strides[2]
    return load(here, grid(rows, strides[1], cols), mask, count, strides[3], dtype)


@triton.jit
def resident_weights(w, z, n, cols, C: tl.constexpr):
    """Every gate's weights, on chip; nothing if they are not to be resident."""
    ok = (cols < z.H)[:, None] & (cols < z.H)[None, :]
    square = cols[:, None] * z.w[1] + cols[None, :] * z.w[2]
    count: tl.constexpr = C.G if C.RESIDENT else 0
    return load(w + n * z.w[0], square, ok, count, z.w[3], w.dtype.element_ty)


@triton.jit
def product(h, weights, start, C: tl.constexpr):
    """h times every gate's weights, each added to its start."""
    out = ()
    for g in tl.static_range(len(weights)):
        q = h.to(weights[g].dtype)
        r = tl.dot(q, weights[g], start[g], input_precision=C.PRECISION, out_dtype=C.DTYPE)
        out = out + (r,)
    return out


@triton.jit
def scan_kernel(a, z, STEP: tl.constexpr, C: tl.constexpr):
    """The scan of `a: Forward` for steps first .. first + steps of `z: Sizes`."""
    row, n, rows, cols, exists, real = place(z, C)
    mask = exists[:, None] & real[None, :]
    base = row * z.N + n
    plane = tl.cast(z.B, tl.int64) * z.N * z.H
    here, at = base * z.H, grid(rows, z.N * z.H, cols)
    s = load(a.s0 + here, at, mask, C.S, plane, C.DTYPE)
    own = load(a.p, n * C.P * z.H + cols, real, C.P, z.H, C.DTYPE)
    bias = load(a.b, n * C.G * z.H + cols, real, 0 if a.b is None else C.G, z.H, C.DTYPE)
    weights = resident_weights(a.w, z, n, cols, C)
    for k in tl.range(z.first, z.first + z.steps, disable_licm=C.STREAM):
        t = time(k, n, z, C)
        x_t = strided(a.x, z.x, t, row, n, rows, cols, mask, C.G, C.DTYPE)
        if C.E:
            x_t = x_t + strided(a.m, z.m, t, row, n, rows, cols, mask, C.E, C.DTYPE)
        if a.flags is not None:
            flag = tl.load(a.flags + t * z.B * z.N + base + rows * z.N, mask=exists, other=0)
            flag = flag[:, None]
            s = select((flag & FRESH) != 0, zeros_like(s), s)
        if C.RESIDENT:
            # d is read anew at every step: held, it would cost registers that the weights need.
            h = (
                s[0]
                if a.d is None
                else s[0] * tl.load(a.d + here + at, mask=mask, other=0).to(C.DTYPE)
            )
            # An additive cell's sum x + r forms in the product's accumulator.
            r_t = product(h, weights, x_t[: C.G] if C.ADDITIVE else zeros_like(x_t[: C.G]), C)
            x_t = nothing(r_t) + x_t[C.G :] if C.ADDITIVE else x_t
        else:
            r_t = load(a.r + here * C.G, grid(rows, z.N * C.G * z.H, cols), mask, C.G, z.H, C.DTYPE)
            if a.flags is not None:
                r_t = select((flag & FRESH) != 0, zeros_like(r_t), r_t)
        new = STEP(x_t, r_t if a.b is None else add(r_t, bias), s, own)
        s = new if a.flags is None else select((flag & LIVE) != 0, new, s)
        shown = s if a.flags is None else select((flag & LIVE) != 0, s, zeros_like(s))
        store(a.output + t * plane + here, at, mask, shown[:1], 0, 0)
        store(a.cells + t * plane + here, at, mask, shown, 1, z.T * plane)
    store(a.last + here, at, mask, s, 0, plane)


@triton.jit
def arriving(a, z, ds, t, here, at, mask, plane, C: tl.constexpr):
    """ds with what the step's states get from outside."""
    total = ds
    if a.doutput is not None:
        total = add(ds[:1], load(a.doutput + t * plane + here, at, mask, 1, 0, C.DTYPE)) + ds[1:]
    if a.dcells is not None:
        cells = load(a.dcells + t * plane + here, at, mask, C.S - 1, z.T * plane, C.DTYPE)
        total = total[:1] + add(total[1:], cells)
    return total


@triton.jit
def through_weights(a, dr, old, weights, here, at, mask, C: tl.constexpr):
    """The gradient of h through every gate's product, added to what it got directly."""
    dh = old[0] if a.d is None else tl.zeros_like(old[0])
    for g in tl.static_range(C.G):
        q = dr[g].to(weights[g].dtype)
        dh = tl.dot(q, weights[g], dh, input_precision=C.PRECISION, out_dtype=C.DTYPE)
    if a.d is not None:
        dh = old[0] + dh * tl.load(a.d + here + at, mask=mask, other=0).to(C.DTYPE)
    return (dh,) + old[1:]


@triton.jit
def scan_backward_kernel(a, z, VJP: tl.constexpr, C: tl.constexpr):
    """The backward of `a: Backward` for steps first + steps - 1 down to first of `z: Sizes`."""
    row, n, rows, cols, exists, real = place(z, C)
    mask = exists[:, None] & real[None, :]
    base = row * z.N + n
    plane = tl.cast(z.B, tl.int64) * z.N * z.H
    here, at = base * z.H, grid(rows, z.N * z.H, cols)
    gates, gate_at = here * C.G, grid(rows, z.N * C.G * z.H, cols)
    ds = load(a.dlast + here, at, mask, C.S, plane, C.DTYPE)
    own = load(a.p, n * C.P * z.H + cols, real, C.P, z.H, C.DTYPE)
    dp = a.dp + (tl.program_id(0) * z.N + n) * C.P * z.H
    dp_sum = load(dp, cols, real, C.P, z.H, C.DTYPE)
    weights = resident_weights(a.w, z, n, cols, C)
    for i in tl.range(z.steps, disable_licm=C.STREAM):
        t = time(z.first + z.steps - 1 - i, n, z, C)
        r_t = load(a.r + t * plane * C.G + gates, gate_at, mask, C.G, z.H, C.DTYPE)
        x_t = nothing(r_t)
        if not C.ADDITIVE:
            x_t = strided(a.x, z.x, t, row, n, rows, cols, mask, C.G, C.DTYPE)
        if C.E:
            x_t = x_t + strided(a.m, z.m, t, row, n, rows, cols, mask, C.E, C.DTYPE)
        s = load(a.prev + t * plane + here, at, mask, C.S, z.T * plane, C.DTYPE)
        total = arriving(a, z, ds, t, here, at, mask, plane, C)
        dx, dr, old, dp_t = VJP(x_t, r_t, s, own, total)
        if a.flags is not None:
            flag = tl.load(a.flags + t * z.B * z.N + base + rows * z.N, mask=exists, other=0)
            live, afresh = (flag & LIVE)[:, None] != 0, (flag & FRESH)[:, None] != 0
            dx, dr = select(live, dx, zeros_like(dx)), select(live, dr, zeros_like(dr))
            dp_t = select(live, dp_t, zeros_like(dp_t))
        if C.RESIDENT:
            old = through_weights(a, dr, old, weights, here, at, mask, C)
        if a.flags is not None:
            old = select(live, select(afresh, zeros_like(old), old), ds)
        ds = old
        store(a.dx + t * plane * C.G + gates, gate_at, mask, dx, 0, z.H)
        if a.dr is not None:
            store(a.dr + t * plane * C.G + gates, gate_at, mask, dr, 0, z.H)
        dp_sum = accumulate(dp_sum, dp_t)
    store(a.ds0 + here, at, mask, ds, 0, plane)
    store(dp, cols, real, dp_sum, 0, z.H)
