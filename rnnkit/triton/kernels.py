"""The recurrent kernels: one forward and one backward, for every cell.

A program owns BB batch rows of one group. With RESIDENT it holds all weights of the group on chip
and loops over the whole sequence; without, it computes one step of BH units, and the recurrent
product is a matrix product of its own before (r, forward) or after (dr, backward) the launch.

Pointers are to dense tensors, except x, m and w, which come with strides. Absent ones are None.
"""

import triton
import triton.language as tl

from ..ops import sequence
from .norm import normalise, normalise_vjp
from .tiles import (
    accumulate,
    add,
    add_share,
    affine,
    blend,
    either,
    load,
    nothing,
    select,
    store,
    store_joined,
    store_rows,
    zeros_like,
)

FRESH = tl.constexpr(sequence.FRESH)
LIVE = tl.constexpr(sequence.LIVE)
# The values of NORM beside 0: each gate alone, or all gates of one product together.
PER_GATE = tl.constexpr(1)
TOGETHER = tl.constexpr(2)


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
    tiles = ()
    if count:
        here = base + t * strides[0] + row * strides[1] + n * strides[2]
        tiles = load(here, grid(rows, strides[1], cols), mask, count, strides[3], dtype)
    return tiles


@triton.jit
def resident_weights(w, z, n, cols, C: tl.constexpr):
    """Every gate's weights, on chip; nothing if they are not to be resident."""
    weights = ()
    if C.RESIDENT:
        ok = (cols < z.H)[:, None] & (cols < z.H)[None, :]
        square = cols[:, None] * z.w[1] + cols[None, :] * z.w[2]
        weights = load(w + n * z.w[0], square, ok, C.G, z.w[3], w.dtype.element_ty)
    return weights


@triton.jit
def drop(q, d, offsets, mask, C: tl.constexpr):
    """q times d. d is read anew at every step: held, it would cost registers that weights need."""
    return q if d is None else q * tl.load(d + offsets, mask=mask, other=0).to(C.DTYPE)


@triton.jit
def product(q, weights, C: tl.constexpr):
    """q times every gate's weights."""
    out = ()
    for g in tl.static_range(len(weights)):
        h = q.to(weights[g].dtype)
        out = out + (tl.dot(h, weights[g], input_precision=C.PRECISION, out_dtype=C.DTYPE),)
    return out


@triton.jit
def normed(r, x, u, C: tl.constexpr):
    """A product's results (with SUM, plus x), normalised if the cell says so."""
    v = add(x, r) if C.SUM else r
    out = ()
    if C.NORM == PER_GATE:
        for g in tl.static_range(len(v)):
            out = out + normalise((v[g],), u)[0]
    else:
        out = normalise(v, u)[0] if C.NORM == TOGETHER else v
    return out


@triton.jit(do_not_specialize=["first"])
def scan_kernel(a, z, first, STEP: tl.constexpr, INNER: tl.constexpr, C: tl.constexpr):
    """The scan of `a: Forward` for the steps from `first` on that `z: Sizes` says."""
    row, n, rows, cols, exists, real = place(z, C)
    mask = exists[:, None] & real[None, :]
    eps = tl.full((), C.EPS, C.DTYPE)  # a number in a tuple would become one of float32
    u = (real[None, :], z.H, eps) + ((True,) if C.QUICK else ())
    base, bounds = row * z.N + n, (z.B - row, z.H)
    plane = tl.cast(z.B, tl.int64) * z.N * z.H
    here, at = base * z.H, grid(rows, z.N * z.H, cols)
    s = load(a.s0 + here, at, mask, C.S, plane, C.DTYPE)
    own = load(a.p, n * C.P * z.H + cols, real, C.P, z.H, C.DTYPE)
    bias = load(a.b, n * C.G * z.H + cols, real, 0 if a.b is None else C.G, z.H, C.DTYPE)
    gain = load(a.gain, n * C.G * z.H + cols, real, C.G if C.NORM else 0, z.H, C.DTYPE)
    weights = resident_weights(a.w, z, n, cols, C)
    # A step's first product is made as soon as its state is known, in the step before: thus it
    # depends on what that step loads, and only such loads does the compiler let run steps ahead.
    r = ()
    if C.AHEAD:
        r = product(drop(s[0], a.d, here + at, mask, C), weights[: C.LATE], C)
    for k in tl.range(first, first + z.steps, disable_licm=C.STREAM):
        t = time(k, n, z, C)
        x_t = strided(a.x, z.x, t, row, n, rows, cols, mask, C.G, C.DTYPE)
        share = strided(a.m, z.m, t, row, n, rows, cols, mask, C.E, C.DTYPE)
        if a.flags is not None:
            flag = tl.load(a.flags + t * z.B * z.N + base + rows * z.N, mask=exists, other=0)
            flag = flag[:, None]
            s = select((flag & FRESH) != 0, zeros_like(s), s)
        if C.RESIDENT:
            early = r
            if not C.AHEAD:
                early = product(drop(s[0], a.d, here + at, mask, C), weights[: C.LATE], C)
            r_t = normed(early, x_t[: C.LATE], u, C)
            r_t = affine(r_t, gain[: C.LATE], bias[: C.LATE])
            if C.LATE < C.G:
                seen = nothing(r_t) if C.SUM else x_t[: C.LATE]
                q = drop(INNER(seen, r_t, s, own, u), a.d, here + at, mask, C)
                late = normed(product(q, weights[C.LATE :], C), x_t[C.LATE :], u, C)
                r_t = r_t + affine(late, gain[C.LATE :], bias[C.LATE :])
        else:
            r_t = load(a.r + here * C.G, grid(rows, z.N * C.G * z.H, cols), mask, C.G, z.H, C.DTYPE)
            r_t = affine(r_t, gain, bias)
        if C.SUM and (C.RESIDENT or C.NORM):
            x_t = nothing(r_t)
        new = blend(share, s, STEP(x_t, r_t, s, own, u))
        s = new if a.flags is None else select((flag & LIVE) != 0, new, s)
        if C.AHEAD:
            r = product(drop(s[0], a.d, here + at, mask, C), weights[: C.LATE], C)
        shown = s if a.flags is None else select((flag & LIVE) != 0, s, zeros_like(s))
        output, more = a.output + t * plane + here, a.cells + t * plane + here
        if C.AT_ONCE > 1 and C.S == 2:
            store_joined(either(output, more), 0, z.N * z.H, cols, bounds, shown)
        else:
            store(output, 0, z.N * z.H, cols, bounds, shown[:1], 1)
            store(more, z.T * plane, z.N * z.H, cols, bounds, shown[1:], 1)
    store(a.last + here, plane, z.N * z.H, cols, bounds, s, 1)


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
def before_norm(a, dr, n, gain, step, exists, u, FIRST: tl.constexpr, C: tl.constexpr):
    """The gradients of one product's results, given those of r; its gates begin with FIRST."""
    if C.NORM:
        dn = affine(dr, gain, ())
        scale = a.scale + step * C.G + FIRST
        if C.NORM == TOGETHER:
            by = tl.load(scale, mask=exists, other=0).to(C.DTYPE)[:, None]
            dr = normalise_vjp(n, by, dn, u)
        else:
            dr = ()
            for g in tl.static_range(len(n)):
                by = tl.load(scale + g, mask=exists, other=0).to(C.DTYPE)[:, None]
                dr = dr + normalise_vjp((n[g],), by, (dn[g],), u)
    return dr


@triton.jit
def back(dr, weights, start, C: tl.constexpr):
    """The gradient of what a product was fed, given that of its results, added to start."""
    q = ()
    other = tl.zeros_like(start)
    together: tl.constexpr = C.AT_ONCE > 1 and len(dr) > 1
    if together:
        # All operands first: then they pass through shared memory together.
        for g in tl.static_range(len(dr)):
            q = q + (dr[g].to(weights[g].dtype),)
    for g in tl.static_range(len(dr)):
        h = q[g] if together else dr[g].to(weights[g].dtype)
        start = tl.dot(h, weights[g], start, input_precision=C.PRECISION, out_dtype=C.DTYPE)
        if together:
            # Two chains of sums: each waits half as often for its last product.
            start, other = other, start
    return start + other if together else start


@triton.jit
def through_products(
    a, x, n, r, s, own, gain, step, weights, exists, here, mask, u, found,
    INNER: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """dx, dr and the states' gradients, given what they get from the step alone."""
    dx, dr, old = found
    if C.LATE < C.G:
        late, of_late = dr[C.LATE :], n[C.LATE :]
        late = before_norm(a, late, of_late, gain[C.LATE :], step, exists, u, C.LATE, C)
        dq = drop(back(late, weights[C.LATE :], tl.zeros_like(old[0]), C), a.d, here, mask, C)
        dx_in, dr_in, ds_in = INNER(x[: C.LATE], r[: C.LATE], s, own, dq, u)
        dx, dr = add(dx, dx_in) + dx[C.LATE :], add(dr, dr_in) + dr[C.LATE :]
        old = add(old, ds_in) + old[len(ds_in) :]
    early, of_early = dr[: C.LATE], n[: C.LATE]
    early = before_norm(a, early, of_early, gain[: C.LATE], step, exists, u, 0, C)
    if a.d is None:
        dh = back(early, weights[: C.LATE], old[0], C)
    else:
        dh = back(early, weights[: C.LATE], tl.zeros_like(old[0]), C)
        dh = old[0] + drop(dh, a.d, here, mask, C)
    return dx, dr, (dh,) + old[1:]


@triton.jit(do_not_specialize=["first"])
def scan_backward_kernel(a, z, first, VJP: tl.constexpr, INNER: tl.constexpr, C: tl.constexpr):
    """The backward of `a: Backward` for the same steps, the last one first."""
    row, n, rows, cols, exists, real = place(z, C)
    mask = exists[:, None] & real[None, :]
    eps = tl.full((), C.EPS, C.DTYPE)  # a number in a tuple would become one of float32
    u = (real[None, :], z.H, eps) + ((True,) if C.QUICK else ())
    base, bounds = row * z.N + n, (z.B - row, z.H)
    plane = tl.cast(z.B, tl.int64) * z.N * z.H
    here, at = base * z.H, grid(rows, z.N * z.H, cols)
    gates, gate_at = here * C.G, grid(rows, z.N * C.G * z.H, cols)
    ds = load(a.dlast + here, at, mask, C.S, plane, C.DTYPE)
    own = load(a.p, n * C.P * z.H + cols, real, C.P, z.H, C.DTYPE)
    bias = load(a.b, n * C.G * z.H + cols, real, 0 if a.b is None else C.G, z.H, C.DTYPE)
    gain = load(a.gain, n * C.G * z.H + cols, real, C.G if C.NORM else 0, z.H, C.DTYPE)
    dp = a.dp + (tl.program_id(0) * z.N + n) * C.P * z.H
    dp_sum = load(dp, cols, real, C.P, z.H, C.DTYPE)
    weights = resident_weights(a.w, z, n, cols, C)
    for i in tl.range(z.steps, disable_licm=C.STREAM):
        t = time(first + z.steps - 1 - i, n, z, C)
        n_t = load(a.r + t * plane * C.G + gates, gate_at, mask, C.G, z.H, C.DTYPE)
        r_t = affine(n_t, gain, bias)
        x_t = nothing(r_t)
        if not C.SUM:
            x_t = strided(a.x, z.x, t, row, n, rows, cols, mask, C.G, C.DTYPE)
        share = strided(a.m, z.m, t, row, n, rows, cols, mask, C.E, C.DTYPE)
        s = load(a.prev + t * plane + here, at, mask, C.S, z.T * plane, C.DTYPE)
        total = arriving(a, z, ds, t, here, at, mask, plane, C)
        dx, dr, old, dp_t = VJP(x_t, r_t, s, own, blend(share, zeros_like(total), total), u)
        old = add_share(share, total, old)
        step = t * z.B * z.N + base + rows * z.N
        if C.RESIDENT:
            dx, dr, old = through_products(
                a, x_t, n_t, r_t, s, own, gain, step, weights, exists, here + at, mask, u,
                (dx, dr, old), INNER, C,
            )  # fmt: skip
        if a.flags is not None:
            flag = tl.load(a.flags + step, mask=exists, other=0)
            live, afresh = (flag & LIVE)[:, None] != 0, (flag & FRESH)[:, None] != 0
            dx, dr = select(live, dx, zeros_like(dx)), select(live, dr, zeros_like(dr))
            dp_t = select(live, dp_t, zeros_like(dp_t))
            old = select(live, select(afresh, zeros_like(old), old), ds)
        ds = old
        to, pitch = t * plane * C.G + gates, z.N * C.G * z.H
        store(a.dx + to, z.H, pitch, cols, bounds, dx, C.AT_ONCE)
        if a.dr is not None:
            store(a.dr + to, z.H, pitch, cols, bounds, dr, C.AT_ONCE)
        dp_sum = accumulate(dp_sum, dp_t)
    store(a.ds0 + here, plane, z.N * z.H, cols, bounds, ds, 1)
    store_rows(dp, cols, real, dp_sum, z.H)
