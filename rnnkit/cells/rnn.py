"""Elman's RNN (1990): h' = act(x + r); and layer-normalised, h' = act(LN(x + r)).

The normalised form is Ba et al. 2016, equation 4: the sum is normalised before the activation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .cell import Cell, Norm, Tensors, normed, register

Activation = Callable[[Tensor], Tensor]


def tanh_slope(h: Tensor) -> Tensor:
    return 1 - h * h


def relu_slope(h: Tensor) -> Tensor:
    return (h > 0).to(h.dtype)


def plain(name: str, act: Activation, slope: Activation) -> Cell:
    """The cell h' = act(x + r); `slope` is act's derivative as a function of its result."""

    def step(x: Tensors, r: Tensors, s: Tensors, p: Tensors) -> Tensors:
        return (act(x[0] + r[0]),)

    def vjp(
        x: Tensors, r: Tensors, s: Tensors, p: Tensors, ds: Tensors
    ) -> tuple[Tensors, Tensors, Tensors, Tensors]:
        da = (ds[0] * slope(act(x[0] + r[0])),)
        return da, da, (torch.zeros_like(ds[0]),), ()

    return register(Cell(name, 1, 1, step, vjp, additive=True))


for cell in (
    plain("rnn_tanh", torch.tanh, tanh_slope),
    plain("rnn_relu", torch.relu, relu_slope),
):
    register(normed(cell, Norm(of_sum=True), "norm"))
