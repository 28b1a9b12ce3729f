"""LSTM in Triton: c' = f * c + i * g, h' = o * tanh(c')."""

import triton
import triton.language as tl

from ..math import sigmoid, tanh
from . import register


@triton.jit
def step(x, r, s, p):
    i = sigmoid(x[0] + r[0])
    f = sigmoid(x[1] + r[1])
    g = tanh(x[2] + r[2])
    o = sigmoid(x[3] + r[3])
    c = f * s[1] + i * g
    return o * tanh(c), c


@triton.jit
def vjp(x, r, s, p, ds):
    i = sigmoid(x[0] + r[0])
    f = sigmoid(x[1] + r[1])
    g = tanh(x[2] + r[2])
    o = sigmoid(x[3] + r[3])
    u = tanh(f * s[1] + i * g)
    dc = ds[1] + ds[0] * o * (1 - u * u)
    da = (
        dc * g * i * (1 - i),
        dc * s[1] * f * (1 - f),
        dc * i * (1 - g * g),
        ds[0] * u * o * (1 - o),
    )
    return da, da, (tl.zeros_like(dc), dc * f), ()


register("lstm", step, vjp)
