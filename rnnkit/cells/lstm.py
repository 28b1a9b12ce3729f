"""LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    i, f, o = sigmoid, g = tanh, of x + r;  c' = f * c + i * g;  h' = o * tanh(c')

Gates in torch's order i, f, g, o; states h, c. With peepholes (Gers and Schmidhuber 2000), i and f
also see p_i * c and p_f * c (the old c), and o sees p_o * c' (the new one).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cell import Cell, Parameter, Tensors, register


def slope(s: Tensor) -> Tensor:
    """The logistic function's derivative, given its value."""
    return s * (1 - s)


def gates(x: Tensors, r: Tensors) -> Tensors:
    i, f, o = (torch.sigmoid(x[k] + r[k]) for k in (0, 1, 3))
    return i, f, torch.tanh(x[2] + r[2]), o


def step(x: Tensors, r: Tensors, s: Tensors, p: Tensors) -> Tensors:
    i, f, g, o = gates(x, r)
    c = f * s[1] + i * g
    return o * torch.tanh(c), c


def vjp(
    x: Tensors, r: Tensors, s: Tensors, p: Tensors, ds: Tensors
) -> tuple[Tensors, Tensors, Tensors, Tensors]:
    i, f, g, o = gates(x, r)
    tanh_c = torch.tanh(f * s[1] + i * g)
    dc = ds[1] + ds[0] * o * (1 - tanh_c * tanh_c)
    da = (
        dc * g * slope(i),
        dc * s[1] * slope(f),
        dc * i * (1 - g * g),
        ds[0] * tanh_c * slope(o),
    )
    return da, da, (torch.zeros_like(dc), dc * f), ()


def peephole_gates(x: Tensors, r: Tensors, c: Tensor, p: Tensors) -> tuple[Tensor, ...]:
    """i, f, g, o and the new c."""
    i = torch.sigmoid(x[0] + r[0] + p[0] * c)
    f = torch.sigmoid(x[1] + r[1] + p[1] * c)
    g = torch.tanh(x[2] + r[2])
    new = f * c + i * g
    return i, f, g, torch.sigmoid(x[3] + r[3] + p[2] * new), new


def peephole_step(x: Tensors, r: Tensors, s: Tensors, p: Tensors) -> Tensors:
    *_, o, c = peephole_gates(x, r, s[1], p)
    return o * torch.tanh(c), c


def peephole_vjp(
    x: Tensors, r: Tensors, s: Tensors, p: Tensors, ds: Tensors
) -> tuple[Tensors, Tensors, Tensors, Tensors]:
    i, f, g, o, c = peephole_gates(x, r, s[1], p)
    tanh_c = torch.tanh(c)
    do = ds[0] * tanh_c * slope(o)
    dc = ds[1] + ds[0] * o * (1 - tanh_c * tanh_c) + do * p[2]
    di, df = dc * g * slope(i), dc * s[1] * slope(f)
    da = (di, df, dc * i * (1 - g * g), do)
    old = dc * f + di * p[0] + df * p[1]
    return da, da, (torch.zeros_like(dc), old), (di * s[1], df * s[1], do * c)


register(Cell("lstm", 4, 2, step, vjp, additive=True))
register(
    Cell(
        "lstm_peephole",
        4,
        2,
        peephole_step,
        peephole_vjp,
        (Parameter("weight_ph", rows=3),),
        additive=True,
    )
)
