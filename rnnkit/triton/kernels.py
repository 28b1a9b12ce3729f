"""The recurrent kernels: one forward and one backward, for every cell.

A program owns BB batch rows of one group. With RESIDENT it holds all weights of the group on chip
and loops over the whole sequence; without, it computes one step of BH units, and the recurrent
product is a matrix product of its own before (r, forward) or after (dr, backward) the launch.

Pointers are to dense tensors, except x, m and w, which come with strides. Absent ones are None.
"""

import triton
import triton.language as tl

from ..ops import sequence

FRESH = tl.constexpr(sequence.FRESH)
LIVE = tl.constexpr(sequence.LIVE)


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


@triton.jit
def place(B, H, BB: tl.constexpr, BH: tl.constexpr):
    """This program's first row, group, rows from the first, columns, and which of them exist."""
    first = tl.program_id(0).to(tl.int64) * BB
    rows = tl.arange(0, BB)
    cols = tl.program_id(2) * BH + tl.arange(0, BH)
    exists = first + rows < B
    return first, tl.program_id(1).to(tl.int64), rows, cols, exists


@triton.jit
def grid(rows, stride, cols):
    """The offsets of a tile from its first row: 32 bits do, since 64-bit ones cost registers."""
    return (rows * stride)[:, None] + cols[None, :]


@triton.jit
def time(k, T, n, N, REVERSE: tl.constexpr, RUNS: tl.constexpr):
    """The time of group n's k-th step; bit i of REVERSE turns the i-th run of groups round."""
    back = ((REVERSE >> (n // (N // RUNS))) & 1) == 1
    return tl.cast(tl.where(back, T - 1 - k, k), tl.int64)


@triton.jit
def resident_weights(w, n, cols, H, strides, G: tl.constexpr):
    """Every gate's weights; strides of groups, inner units, outer units and gates."""
    square = cols[:, None] * strides[1] + cols[None, :] * strides[2]
    ok = (cols < H)[:, None] & (cols < H)[None, :]
    return load(w + n * strides[0], square, ok, G, strides[3], w.dtype.element_ty)


@triton.jit
def scan_kernel(
    x,
    m,
    w,
    b,
    p,
    d,
    s0,
    r,
    flags,
    output,
    cells,
    last,  # fmt: skip
    first,
    steps,
    T,
    B,
    N,
    H,
    x_strides,
    m_strides,
    w_strides,  # fmt: skip
    STEP: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    E: tl.constexpr,  # fmt: skip
    ADDITIVE: tl.constexpr,
    REVERSE: tl.constexpr,
    RUNS: tl.constexpr,
    RESIDENT: tl.constexpr,
    STREAM: tl.constexpr,  # fmt: skip
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,  # fmt: skip
):
    """Steps first .. first + steps of the scan. Without RESIDENT, s0 and last are one buffer."""
    row, n, rows, cols, exists = place(B, H, BB, BH)
    mask = exists[:, None] & (cols < H)[None, :]
    # Every pointer moves to this program's first row and group.
    base = row * N + n
    plane = tl.cast(B, tl.int64) * N * H
    at, row_at = grid(rows, N * H, cols), rows * N
    x += row * x_strides[1] + n * x_strides[2]
    x_at = grid(rows, x_strides[1], cols)
    output += base * H
    cells += base * H
    last += base * H
    s = load(s0 + base * H, at, mask, S, plane, DTYPE)
    own = load(p, n * P * H + cols, cols < H, P, H, DTYPE)
    bias = load(b, n * G * H + cols, cols < H, 0 if b is None else G, H, DTYPE)
    if E:
        m += row * m_strides[1] + n * m_strides[2]
    if d is not None:
        d += base * H
    if RESIDENT:
        weights = resident_weights(w, n, cols, H, w_strides, G)
    else:
        r += base * G * H
        r_at = grid(rows, N * G * H, cols)
    for k in tl.range(first, first + steps, disable_licm=STREAM):
        t = time(k, T, n, N, REVERSE, RUNS)
        x_t = load(x + t * x_strides[0], x_at, mask, G, x_strides[3], DTYPE)
        if E:
            m_at = grid(rows, m_strides[1], cols)
            x_t = x_t + load(m + t * m_strides[0], m_at, mask, E, m_strides[3], DTYPE)
        if flags is not None:
            flag = tl.load(flags + t * B * N + base + row_at, mask=exists, other=0)[:, None]
            s = select((flag & FRESH) != 0, zeros_like(s), s)
        if RESIDENT:
            # d is read anew at every step: held, it would cost registers that the weights need.
            h = s[0] if d is None else s[0] * tl.load(d + at, mask=mask, other=0).to(DTYPE)
            h = h.to(w.dtype.element_ty)
            r_t = ()
            for g in tl.static_range(G):
                # An additive cell's sum x + r forms in the product's accumulator.
                start = x_t[g] if ADDITIVE else tl.zeros((BB, BH), DTYPE)
                r_g = tl.dot(h, weights[g], start, out_dtype=DTYPE, input_precision=PRECISION)
                r_t = r_t + (r_g,)
            if ADDITIVE:
                x_t = nothing(r_t) + x_t[G:]
        else:
            r_t = load(r, r_at, mask, G, H, DTYPE)
            if flags is not None:
                r_t = select((flag & FRESH) != 0, zeros_like(r_t), r_t)
        if b is not None:
            r_t = add(r_t, bias)
        new = STEP(x_t, r_t, s, own)
        s = new if flags is None else select((flag & LIVE) != 0, new, s)
        shown = s if flags is None else select((flag & LIVE) != 0, s, zeros_like(s))
        tl.store(output + t * plane + at, shown[0].to(output.dtype.element_ty), mask=mask)
        store(cells + t * plane, at, mask, shown, 1, T * plane)
    store(last, at, mask, s, 0, plane)


@triton.jit
def scan_backward_kernel(
    x,
    m,
    w,
    p,
    d,
    r,
    prev,
    doutput,
    dcells,
    dlast,
    flags,
    dx,
    dr,
    ds0,
    dp,  # fmt: skip
    first,
    steps,
    T,
    B,
    N,
    H,
    x_strides,
    m_strides,
    w_strides,  # fmt: skip
    VJP: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    E: tl.constexpr,  # fmt: skip
    ADDITIVE: tl.constexpr,
    REVERSE: tl.constexpr,
    RUNS: tl.constexpr,
    RESIDENT: tl.constexpr,
    STREAM: tl.constexpr,  # fmt: skip
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BB: tl.constexpr,
    BH: tl.constexpr,  # fmt: skip
):
    """Steps first + steps - 1 down to first. Without RESIDENT, dlast and ds0 are one buffer.

    With ADDITIVE, r holds x + r.
    """
    row, n, rows, cols, exists = place(B, H, BB, BH)
    mask = exists[:, None] & (cols < H)[None, :]
    # Every pointer moves to this program's first row and group.
    base = row * N + n
    plane = tl.cast(B, tl.int64) * N * H
    at, row_at, gate_at = grid(rows, N * H, cols), rows * N, grid(rows, N * G * H, cols)
    if not ADDITIVE:
        x += row * x_strides[1] + n * x_strides[2]
        x_at = grid(rows, x_strides[1], cols)
    r += base * G * H
    prev += base * H
    dx += base * G * H
    ds = load(dlast + base * H, at, mask, S, plane, DTYPE)
    own = load(p, n * P * H + cols, cols < H, P, H, DTYPE)
    dp += (tl.program_id(0) * N + n) * P * H
    dp_sum = load(dp, cols, cols < H, P, H, DTYPE)
    if E:
        m += row * m_strides[1] + n * m_strides[2]
    if dr is not None:
        dr += base * G * H
    if doutput is not None:
        doutput += base * H
    if dcells is not None:
        dcells += base * H
    if d is not None:
        d += base * H
    if RESIDENT:
        weights = resident_weights(w, n, cols, H, w_strides, G)
    for i in tl.range(steps, disable_licm=STREAM):
        t = time(first + steps - 1 - i, T, n, N, REVERSE, RUNS)
        r_t = load(r + t * plane * G, gate_at, mask, G, H, DTYPE)
        if ADDITIVE:
            x_t = nothing(r_t)
        else:
            x_t = load(x + t * x_strides[0], x_at, mask, G, x_strides[3], DTYPE)
        if E:
            m_at = grid(rows, m_strides[1], cols)
            x_t = x_t + load(m + t * m_strides[0], m_at, mask, E, m_strides[3], DTYPE)
        s = load(prev + t * plane, at, mask, S, T * plane, DTYPE)
        total = ds
        if doutput is not None:
            dh = tl.load(doutput + t * plane + at, mask=mask, other=0).to(DTYPE)
            total = (total[0] + dh,) + total[1:]
        if dcells is not None:
            arriving = load(dcells + t * plane, at, mask, S - 1, T * plane, DTYPE)
            total = (total[0],) + add(total[1:], arriving)
        dx_t, dr_t, old, dp_t = VJP(x_t, r_t, s, own, total)
        if flags is not None:
            flag = tl.load(flags + t * B * N + base + row_at, mask=exists, other=0)[:, None]
            live = (flag & LIVE) != 0
            dx_t = select(live, dx_t, zeros_like(dx_t))
            dr_t = select(live, dr_t, zeros_like(dr_t))
            dp_t = select(live, dp_t, zeros_like(dp_t))
        if RESIDENT:
            dh = old[0] if d is None else tl.zeros((BB, BH), DTYPE)
            for g in tl.static_range(G):
                dr_g = dr_t[g].to(w.dtype.element_ty)
                dh = tl.dot(dr_g, weights[g], dh, out_dtype=DTYPE, input_precision=PRECISION)
            if d is not None:
                dh = old[0] + dh * tl.load(d + at, mask=mask, other=0).to(DTYPE)
            old = (dh,) + old[1:]
        if flags is not None:
            old = select((flag & FRESH) != 0, zeros_like(old), old)
        ds = old if flags is None else select(live, old, ds)
        store(dx + t * plane * G, gate_at, mask, dx_t, 0, H)
        if dr is not None:
            store(dr + t * plane * G, gate_at, mask, dr_t, 0, H)
        dp_sum = accumulate(dp_sum, dp_t)
    store(ds0 + base * H, at, mask, ds, 0, plane)
    store(dp, cols, cols < H, dp_sum, 0, H)
