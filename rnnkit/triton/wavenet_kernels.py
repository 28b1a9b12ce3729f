"""The kernels of a WaveNet block: forward whole, backward up to the gradient of the gate's sums.

A program has all channels of a tile of time, so that the product which goes on needs no second
launch. `t`, `z` and `C` are the gated convolution's, as in `convolution_kernels`.
"""

import triton
import triton.language as tl

from .activations import gated, gated_vjp
from .convolution_kernels import at, before_activation


@triton.jit
def place(z, C: tl.constexpr):
    """This program's row of the batch, times, channels, and which of their tile exist."""
    tiles = tl.cdiv(z.T, C.BM)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    time, col = (tl.program_id(0) % tiles) * C.BM + tl.arange(0, C.BM), tl.arange(0, C.BN)
    return n, time, col, (time < z.T)[:, None] & (col < z.cols)[None, :]


@triton.jit
def square(r, cols, down, across, C: tl.constexpr):
    """The matrix r (cols, cols), with those strides of its rows and columns, as a tile."""
    one = tl.arange(0, C.BN)
    ok = (one < cols)[:, None] & (one < cols)[None, :]
    return tl.load(r + one[:, None] * down + one[None, :] * across, mask=ok, other=0)


@triton.jit
def block_kernel(t, z, r, rb, onward, turn, steps, C: tl.constexpr):
    """z = gate; onward = x + r z + rb, unless r is None. turn, steps: strides of r and onward."""
    n, time, col, real = place(z, C)
    v = gated(before_activation(t, z, n, 0, col, time, real, C)).to(t.out.dtype.element_ty)
    tl.store(at(t.out, z.out, n, col, time), v, mask=real)
    if r is not None:
        acc = tl.load(at(t.source, z.source, n, col, time), mask=real, other=0).to(C.DTYPE)
        acc += tl.load(rb + col, mask=col < z.cols, other=0).to(C.DTYPE)[None, :]
        turned = square(r, z.cols, turn[1], turn[0], C)
        acc = tl.dot(v, turned, acc, input_precision=C.PRECISION, out_dtype=C.DTYPE)
        tl.store(at(onward, steps, n, col, time), acc.to(onward.dtype.element_ty), mask=real)


@triton.jit
def block_gradient_kernel(t, z, r, donward, turn, steps, C: tl.constexpr):
    """The gradient of the gate's sums, from dz (t.dy) and that of what goes on, if given."""
    n, time, col, real = place(z, C)
    dz = tl.load(at(t.dy, z.dy, n, col, time), mask=real, other=0).to(C.DTYPE)
    if donward is not None:
        dv = tl.load(at(donward, steps, n, col, time), mask=real, other=0)
        weights = square(r, z.cols, turn[0], turn[1], C)
        dz = tl.dot(dv, weights, dz, input_precision=C.PRECISION, out_dtype=C.DTYPE)
    found = gated_vjp(before_activation(t, z, n, 0, col, time, real, C), dz)
    for part in tl.static_range(2):
        here = at(t.out, z.out, n, col + part * z.cols, time)
        tl.store(here, found[part].to(t.out.dtype.element_ty), mask=real)
