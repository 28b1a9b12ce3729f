"""Elman's RNN in Triton: h' = act(x + r)."""

import triton
import triton.language as tl

from ..math import quick_tanh
from . import register


@triton.jit
def tanh_step(x, r, s, p, u):
    return (quick_tanh(x[0] + r[0], u),)


@triton.jit
def tanh_vjp(x, r, s, p, ds, u):
    h = quick_tanh(x[0] + r[0], u)
    da = (ds[0] * (1 - h * h),)
    return da, da, (tl.zeros_like(h),), ()


@triton.jit
def relu_step(x, r, s, p, u):
    return (tl.maximum(x[0] + r[0], 0.0, propagate_nan=tl.PropagateNan.ALL),)


@triton.jit
def relu_vjp(x, r, s, p, ds, u):
    a = x[0] + r[0]
    da = (tl.where(a > 0, ds[0], 0.0),)
    return da, da, (tl.zeros_like(a),), ()


register("rnn_tanh", tanh_step, tanh_vjp)
register("rnn_relu", relu_step, relu_vjp)
