"""LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    i, f, o = sigmoid, g = tanh, of x + r;  c' = f * c + i * g;  h' = o * tanh(c')

Gates in torch's order i, f, g, o; states h, c. With peepholes (Gers and Schmidhuber 2000), i and f
also see p_i * c and p_f * c (the old c), and o sees p_o * c' (the new one).

Layer-normalised (Ba et al. 2016, equations 20 to 22), r is LN(h @ w.T) * gain + b over all four
gates or over each, and h' = o * tanh(LN(c')). Carried on is c' or, in the "carry" form, LN(c').
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .cell import Cell, Norm, Parameter, Tensors, normed, register
from .norm import EPS, normalise, normalise_vjp


def slope(s: Tensor) -> Tensor:
    """The logistic function's derivative, given its value."""
    return s * (1 - s)


class Values(NamedTuple):
    """What a step computes: c is the new one, n and scale what `normalise` gives of it."""

    i: Tensor
    f: Tensor
    g: Tensor
    o: Tensor
    n: Tensor
    scale: Tensor
    tanh: Tensor
    c: Tensor


def equations(name: str, peephole: bool, norm: bool, carry: bool) -> Cell:
    """The cell with or without peepholes, a norm of c', and c' carried on normalised."""

    def values(x: Tensors, r: Tensors, old: Tensor, p: Tensors, eps: float) -> Values:
        i, f, g, o = (a + b for a, b in zip(x, r, strict=True))
        if peephole:
            i, f = i + p[0] * old, f + p[1] * old
        i, f, g = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g)
        c = n = scale = seen = f * old + i * g
        if norm:
            n, scale = normalise(c, eps)
            seen = n * p[-2] + p[-1]
        c = seen if carry else c
        o = torch.sigmoid(o + p[2] * c if peephole else o)
        return Values(i, f, g, o, n, scale, torch.tanh(seen), c)

    def step(x: Tensors, r: Tensors, s: Tensors, p: Tensors, eps: float = EPS) -> Tensors:
        v = values(x, r, s[1], p, eps)
        return v.o * v.tanh, v.c

    def vjp(
        x: Tensors, r: Tensors, s: Tensors, p: Tensors, ds: Tensors, eps: float = EPS
    ) -> tuple[Tensors, Tensors, Tensors, Tensors]:
        v = values(x, r, s[1], p, eps)
        dp: Tensors = ()
        do = ds[0] * v.tanh * slope(v.o)
        dc, dseen = ds[1], ds[0] * v.o * (1 - v.tanh * v.tanh)
        if peephole:
            dc = dc + do * p[2]
        if norm:
            # What is carried on normalised is what the output sees.
            dc, dseen = (torch.zeros_like(dc), dc + dseen) if carry else (dc, dseen)
            dp = (dseen * v.n, dseen)
            dseen = normalise_vjp(v.n, v.scale, dseen * p[-2])
        dc = dc + dseen
        di, df = dc * v.g * slope(v.i), dc * s[1] * slope(v.f)
        da, old = (di, df, dc * v.i * (1 - v.g * v.g), do), dc * v.f
        if peephole:
            dp = (di * s[1], df * s[1], do * v.c, *dp)
            old = old + di * p[0] + df * p[1]
        return da, da, (torch.zeros_like(old), old), dp

    parameters = [Parameter("weight_ph", rows=3)] * peephole
    if norm:
        parameters += [Parameter("norm_c_weight", fill=1.0), Parameter("norm_c_bias", fill=0.0)]
    kernel = name + "_norm" * norm + "_carry" * carry
    return Cell(name, 4, 2, step, vjp, tuple(parameters), True, normalises=norm, kernel=kernel)


for name, peephole in (("lstm", False), ("lstm_peephole", True)):
    register(equations(name, peephole, norm=False, carry=False))
    for carry, ending in ((False, ""), (True, "_carry")):
        cell = equations(name, peephole, True, carry)
        register(normed(cell, Norm(), "norm" + ending))
        register(normed(cell, Norm(per_gate=True), "norm_gates" + ending))
