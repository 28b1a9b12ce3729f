"""GRU, in both of its forms; gates in torch's order r, z, n (r is named `reset` here).

reset after the product (torch, cuDNN):  n = tanh(x_n + reset * r_n),  r_n = W_hn h + b_hn
reset before the product (Cho et al. 2014):  n = tanh(x_n + W_hn (reset * h) + b_hn)

Both: reset, z = sigmoid(x + r);  h' = (1 - z) * n + z * h.

Layer-normalised, r is LN(h @ w.T) * gain + b over all three gates or over each; in the second form,
whose two products come one after the other, over the gates of each product or over each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cell import Cell, Inner, Norm, Tensors, normed, register
from .lstm import slope


def step(x: Tensors, r: Tensors, s: Tensors, p: Tensors) -> Tensors:
    reset, z = torch.sigmoid(x[0] + r[0]), torch.sigmoid(x[1] + r[1])
    n = torch.tanh(x[2] + reset * r[2])
    return (n + z * (s[0] - n),)


def vjp(
    x: Tensors, r: Tensors, s: Tensors, p: Tensors, ds: Tensors
) -> tuple[Tensors, Tensors, Tensors, Tensors]:
    reset, z = torch.sigmoid(x[0] + r[0]), torch.sigmoid(x[1] + r[1])
    n = torch.tanh(x[2] + reset * r[2])
    dn = ds[0] * (1 - z) * (1 - n * n)
    dz = ds[0] * (s[0] - n) * slope(z)
    dreset = dn * r[2] * slope(reset)
    return (dreset, dz, dn), (dreset, dz, dn * reset), (ds[0] * z,), ()


def before_step(x: Tensors, r: Tensors, s: Tensors, p: Tensors) -> Tensors:
    z, n = torch.sigmoid(x[1] + r[1]), torch.tanh(x[2] + r[2])
    return (n + z * (s[0] - n),)


def before_vjp(
    x: Tensors, r: Tensors, s: Tensors, p: Tensors, ds: Tensors
) -> tuple[Tensors, Tensors, Tensors, Tensors]:
    z, n = torch.sigmoid(x[1] + r[1]), torch.tanh(x[2] + r[2])
    dz = ds[0] * (s[0] - n) * slope(z)
    da = (torch.zeros_like(dz), dz, ds[0] * (1 - z) * (1 - n * n))
    return da, da, (ds[0] * z,), ()


def inner_step(x: Tensors, r: Tensors, s: Tensors, p: Tensors) -> Tensor:
    return torch.sigmoid(x[0] + r[0]) * s[0]


def inner_vjp(
    x: Tensors, r: Tensors, s: Tensors, p: Tensors, dq: Tensor
) -> tuple[Tensors, Tensors, Tensors]:
    reset = torch.sigmoid(x[0] + r[0])
    da = (dq * s[0] * slope(reset), torch.zeros_like(dq))
    return da, da, (dq * reset,)


inner = Inner(2, inner_step, inner_vjp)
for cell in (
    register(Cell("gru", 3, 1, step, vjp)),
    register(Cell("gru_before", 3, 1, before_step, before_vjp, additive=True, inner=inner)),
):
    register(normed(cell, Norm(), "norm"))
    register(normed(cell, Norm(per_gate=True), "norm_gates"))
