"""A cell from outside the package: the minimal gated unit (Zhou et al. 2016), reset after.

f = sigmoid(x_f + r_f);  n = tanh(x_n + f * r_n);  h' = (1 - f) * h + f * n
"""

import torch
import triton
import triton.language as tl  # noqa: F401 (a file of kernels must have it)

import rnnkit
from rnnkit.triton.cells import register as register_kernels
from rnnkit.triton.math import sigmoid, tanh


class MGU(rnnkit.Recurrent):
    """The layer of the cell."""

    kind = "mgu"


def step(x, r, s, p):
    f = torch.sigmoid(x[0] + r[0])
    return ((1 - f) * s[0] + f * torch.tanh(x[1] + f * r[1]),)


def vjp(x, r, s, p, ds):
    f = torch.sigmoid(x[0] + r[0])
    n = torch.tanh(x[1] + f * r[1])
    dn = ds[0] * f * (1 - n * n)
    df = (ds[0] * (n - s[0]) + dn * r[1]) * f * (1 - f)
    return (df, dn), (df, dn * f), (ds[0] * (1 - f),), ()


@triton.jit
def kernel_step(x, r, s, p, u):
    f = sigmoid(x[0] + r[0])
    return ((1 - f) * s[0] + f * tanh(x[1] + f * r[1]),)


@triton.jit
def kernel_vjp(x, r, s, p, ds, u):
    f = sigmoid(x[0] + r[0])
    n = tanh(x[1] + f * r[1])
    dn = ds[0] * f * (1 - n * n)
    df = (ds[0] * (n - s[0]) + dn * r[1]) * f * (1 - f)
    return (df, dn), (df, dn * f), (ds[0] * (1 - f),), ()


def register():
    rnnkit.cells.register(rnnkit.cells.Cell("mgu", 2, 1, step, vjp))
    register_kernels("mgu", kernel_step, kernel_vjp)
