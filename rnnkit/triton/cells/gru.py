"""GRU in Triton, the reset gate after the product: n = tanh(x_n + reset * r_n)."""

import triton
import triton.language as tl  # noqa: F401 (a file of kernels must have it)

from ..math import sigmoid, tanh
from . import register


@triton.jit
def step(x, r, s, p):
    reset = sigmoid(x[0] + r[0])
    z = sigmoid(x[1] + r[1])
    n = tanh(x[2] + reset * r[2])
    return ((1 - z) * n + z * s[0],)


@triton.jit
def vjp(x, r, s, p, ds):
    reset = sigmoid(x[0] + r[0])
    z = sigmoid(x[1] + r[1])
    n = tanh(x[2] + reset * r[2])
    dn = ds[0] * (1 - z) * (1 - n * n)
    dz = ds[0] * (s[0] - n) * z * (1 - z)
    da = dn * r[2] * reset * (1 - reset)
    return (da, dz, dn), (da, dz, dn * reset), (ds[0] * z,), ()


register("gru", step, vjp)
