"""Elman's RNN (1990): h' = act(x + r); and layer-normalised, h' = act(LN(x + r)).

The normalised form is Ba et al. 2016, equation 4: the sum is normalised before the activation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .cell import Cell, Parameter, Tensors, register
from .norm import normalise, normalise_vjp

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


def normed(name: str, act: Activation, slope: Activation) -> Cell:
    """The cell h' = act(LN(x + r; gain, shift))."""

    def step(x: Tensors, r: Tensors, s: Tensors, p: Tensors) -> Tensors:
        return (act(normalise(x[0] + r[0])[0] * p[0] + p[1]),)

    def vjp(
        x: Tensors, r: Tensors, s: Tensors, p: Tensors, ds: Tensors
    ) -> tuple[Tensors, Tensors, Tensors, Tensors]:
        n, scale = normalise(x[0] + r[0])
        da = ds[0] * slope(act(n * p[0] + p[1]))
        dv = (normalise_vjp(n, scale, da * p[0]),)
        return dv, dv, (torch.zeros_like(da),), (da * n, da)

    parameters = (Parameter("norm_weight", fill=1.0), Parameter("norm_bias", fill=0.0))
    return register(Cell(name, 1, 1, step, vjp, parameters, additive=True))


plain("rnn_tanh", torch.tanh, tanh_slope)
plain("rnn_relu", torch.relu, relu_slope)
normed("rnn_tanh_norm", torch.tanh, tanh_slope)
normed("rnn_relu_norm", torch.relu, relu_slope)
