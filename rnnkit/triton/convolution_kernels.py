"""The kernels of the causal convolution: one for y, the activation's gradient and dx, one for dw.

Time is a dimension of the tiles: a tap is the same tensor read some steps away, out of range as
zero, so that no dilation costs a padded copy. With DOT a product goes to the matrix units; without,
it is a sum of outer products, which serves few channels a group, and float64.

Pointers come with strides of batch, channels and time. Absent ones are None.
"""

import triton
import triton.language as tl


@triton.jit
def at(base, strides, n, channel, time):
    """Pointers to a tile of time and channels of one row of the batch, which spans 32 bits."""
    return base + n * strides[0] + (time[:, None] * strides[2] + channel[None, :] * strides[1])


@triton.jit
def read(t, z, n, channel, pos, exists):
    """The source at those positions; what stands before it is the past, or zero."""
    ok = exists[None, :] & ((pos >= 0) & (pos < z.L))[:, None]
    v = tl.load(at(t.source, z.source, n, channel, pos), mask=ok, other=0)
    if t.past is not None:
        before = pos + z.context
        ok = exists[None, :] & ((pos < 0) & (before >= 0))[:, None]
        v += tl.load(at(t.past, z.past, n, channel, before), mask=ok, other=0)
    return v


@triton.jit
def position(time, k, z, C: tl.constexpr):
    """Where the k-th tap of each output stands; z.L, where nothing is, if it does not exist."""
    shift = (z.K - 1 - k) * z.dilation
    if C.TURNED:
        ahead = time + shift
        found = tl.where((ahead >= 0) & (ahead % z.stride == 0), ahead // z.stride, z.L)
    else:
        found = time * z.stride - shift
    return found


@triton.jit
def weights(t, z, g, k, row, r):
    """Pointers to the weights of those rows (columns of the tile) and reduced channels."""
    here = t.w + g * z.w[0] + k * z.w[3]
    return here + (row[None, :] * z.w[1] + r[:, None] * z.w[2])


@triton.jit
def add_product(acc, t, z, n, g, k, first, col, time, C: tl.constexpr):
    """The tiles plus the products of their weights with BK channels of the k-th tap."""
    pos, real, r = position(time, k, z, C), col < z.cols, first + tl.arange(0, C.BK)
    out = ()
    if C.DOT:
        inside = r < z.red
        q = read(t, z, n, g * z.red + r, pos, inside)
        ok = inside[:, None] & real[None, :]
        for part in tl.static_range(len(acc)):
            v = tl.load(weights(t, z, g, k, col + part * z.cols, r), mask=ok, other=0)
            new = tl.dot(q, v, acc[part], input_precision=C.PRECISION, out_dtype=C.DTYPE)
            out = out + (new,)
    else:
        for part in tl.static_range(len(acc)):
            row = col + part * z.cols
            # Columns of a depthwise convolution read channels of their own.
            q = read(t, z, n, (g + row // z.per) * z.red + first, pos, real)
            v = tl.load(weights(t, z, g, k, row, r), mask=real[None, :], other=0)
            out = out + (acc[part] + q.to(C.DTYPE) * v.to(C.DTYPE),)
    return out


@triton.jit
def with_addends(v, t, z, n, row, time, exists, real, C: tl.constexpr):
    """A tile of products plus the bias and the addend, where there are any."""
    if t.b is not None:
        v += tl.load(t.b + row, mask=exists, other=0).to(C.DTYPE)[None, :]
    if t.add is not None:
        v += tl.load(at(t.add, z.add, n, row, time), mask=real, other=0).to(C.DTYPE)
    return v


@triton.jit
def before_activation(t, z, n, g, col, time, real, C: tl.constexpr):
    """The C.PARTS tiles: all taps' products, the bias and the addend."""
    acc = ()
    for _ in tl.static_range(C.PARTS):
        acc = acc + (tl.zeros((C.BM, C.BN), C.DTYPE),)
    depth = tl.cdiv(z.red, C.BK)
    for i in range(z.K * depth):
        acc = add_product(acc, t, z, n, g, i // depth, (i % depth) * C.BK, col, time, C)
    out = ()
    for part in tl.static_range(C.PARTS):
        row = g * z.cols + col + part * z.cols
        out = out + (with_addends(acc[part], t, z, n, row, time, col < z.cols, real, C),)
    return out


@triton.jit
def correlate_kernel(t, z, ACTIVATION: tl.constexpr, C: tl.constexpr):
    """One tile of time and channels of the result, by what is given:

    y = activation(sums); or, given dy, the activation's gradient at the sums; or, TURNED, the
    gradient of a convolution's source and past from that of its sums.
    """
    tiles, columns = tl.cdiv(z.T, C.BM), tl.cdiv(z.cols, C.BN)
    # One dimension of the grid: the others take 65535 programs at most.
    index, across = tl.program_id(0) % (z.N * tiles), tl.program_id(0) // (z.N * tiles)
    n, g = (index // tiles).to(tl.int64), across // columns
    step = (index % tiles) * C.BM + tl.arange(0, C.BM)
    col = (across % columns) * C.BN + tl.arange(0, C.BN)
    time, row = z.first + step, g * z.cols + col
    real = (step < z.T)[:, None] & (col < z.cols)[None, :]
    tiles_of = before_activation(t, z, n, g, col, time, real & (time >= 0)[:, None], C)
    if t.dy is not None:
        dy = tl.load(at(t.dy, z.dy, n, row, time), mask=real, other=0).to(C.DTYPE)
        found = ACTIVATION(tiles_of, dy)
    else:
        found = (ACTIVATION(tiles_of),)
    for part in tl.static_range(len(found)):
        v = found[part].to(t.out.dtype.element_ty)
        here = at(t.out, z.out, n, row + part * z.cols, time)
        tl.store(here, v, mask=real & (time >= 0)[:, None])
        if t.before is not None:
            here = at(t.before, z.before, n, row, time + z.context)
            tl.store(here, v, mask=real & (time < 0)[:, None])


@triton.jit
def weights_kernel(t, z, C: tl.constexpr):
    """The partial sums of dw and db over one slice of the tiles of time, batch by batch.

    t.dy is the gradient of the sums; the tile is BN rows of dw by BK channels.
    """
    columns, depth, tiles = tl.cdiv(z.cols, C.BN), tl.cdiv(z.red, C.BK), tl.cdiv(z.T, C.BM)
    count = tl.cdiv(z.N * tiles, z.slice)
    part, across = (tl.program_id(0) % count).to(tl.int64), tl.program_id(0) // count
    k, across = across % z.K, across // z.K
    g = across // (columns * depth)
    col = (across // depth % columns) * C.BN + tl.arange(0, C.BN)
    r = (across % depth) * C.BK + tl.arange(0, C.BK)
    real, inside, row = col < z.cols, r < z.red, g * z.cols + col
    # Columns of a depthwise convolution read channels of their own.
    channel = g * z.red + r if C.DOT else (g + col // z.per) * z.red + r
    acc = tl.zeros((C.BN, C.BK), C.DTYPE)
    total = tl.zeros((C.BN,), C.DTYPE)
    for i in range(part * z.slice, tl.minimum((part + 1) * z.slice, z.N * tiles)):
        n = (i // tiles).to(tl.int64)
        time = (i % tiles).to(tl.int32) * C.BM + tl.arange(0, C.BM)
        ok = (time < z.T)[:, None] & real[None, :]
        da = tl.load(at(t.dy, z.dy, n, row, time), mask=ok, other=0)
        # Where no output is, nothing is read: a zero gradient would not silence an infinite input.
        pos = tl.where(time < z.T, position(time, k, z, C), z.L)
        if C.DOT:
            q = read(t, z, n, channel, pos, inside)
            acc = tl.dot(tl.trans(da), q, acc, input_precision=C.PRECISION, out_dtype=C.DTYPE)
        else:
            q = read(t, z, n, channel, pos, real)
            acc += tl.sum(da.to(C.DTYPE) * q.to(C.DTYPE), 0)[:, None]
        total += tl.sum(da.to(C.DTYPE), 0)
    here = t.out + part * z.out[0] + row[:, None] * z.out[1] + r[None, :] * z.K + k
    tl.store(here, acc, mask=real[:, None] & inside[None, :])
    if (k == 0) & (across % depth == 0):
        tl.store(t.before + part * z.before[0] + row, total, mask=real)
