"""GRU in Triton: n = tanh(x_n + reset * r_n), or with the reset gate before the product."""

import triton
import triton.language as tl

from ..math import quick_sigmoid, quick_tanh, sigmoid
from . import register


@triton.jit
def step(x, r, s, p, u):
    reset = quick_sigmoid(x[0] + r[0], u)
    z = sigmoid(x[1] + r[1])
    n = quick_tanh(x[2] + reset * r[2], u)
    return ((1 - z) * n + z * s[0],)


@triton.jit
def vjp(x, r, s, p, ds, u):
    reset = quick_sigmoid(x[0] + r[0], u)
    z = sigmoid(x[1] + r[1])
    n = quick_tanh(x[2] + reset * r[2], u)
    dn = ds[0] * (1 - z) * (1 - n * n)
    dz = ds[0] * (s[0] - n) * z * (1 - z)
    da = dn * r[2] * reset * (1 - reset)
    return (da, dz, dn), (da, dz, dn * reset), (ds[0] * z,), ()


@triton.jit
def before_step(x, r, s, p, u):
    z = sigmoid(x[1] + r[1])
    n = quick_tanh(x[2] + r[2], u)
    return ((1 - z) * n + z * s[0],)


@triton.jit
def before_vjp(x, r, s, p, ds, u):
    z = sigmoid(x[1] + r[1])
    n = quick_tanh(x[2] + r[2], u)
    dz = ds[0] * (s[0] - n) * z * (1 - z)
    da = (tl.zeros_like(dz), dz, ds[0] * (1 - z) * (1 - n * n))
    return da, da, (ds[0] * z,), ()


@triton.jit
def inner_step(x, r, s, p, u):
    return quick_sigmoid(x[0] + r[0], u) * s[0]


@triton.jit
def inner_vjp(x, r, s, p, dq, u):
    reset = quick_sigmoid(x[0] + r[0], u)
    da = (dq * s[0] * reset * (1 - reset), tl.zeros_like(dq))
    return da, da, (dq * reset,)


register("gru", step, vjp)
register("gru_before", before_step, before_vjp, inner_step, inner_vjp)
