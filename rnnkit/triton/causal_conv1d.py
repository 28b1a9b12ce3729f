"""The causal convolution on Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..activations import parts
from ..ops.convolution import Convolution, allocate, allocate_gradients, like
from ..reference.activations import ACTIVATIONS
from .convolution import (
    SPAN,
    depthwise,
    forward,
    inputs_gradient,
    near,
    parameters_gradient,
    partials,
    ready,
    run,
)
from .usable import why_unusable

if TYPE_CHECKING:
    from ..dispatch import LayerProblem


def why_not(problem: LayerProblem) -> str | None:
    """Why the kernels cannot run this problem; None if they can."""
    sizes = dict(problem.sizes)
    steps = sizes["L"] + (sizes["K"] - 1) * sizes["dilation"]
    for name, channels in (("input", sizes["C"]), ("output", sizes.get("O", 2 * sizes["C"]))):
        if channels * steps >= SPAN:
            return f"a row of the {name} has 2**31 elements or more: its kernels count in 32 bits"
    return why_unusable(problem)


def causal_conv1d(call: Convolution) -> Tensor:
    """y (N, O, ceil(L / stride)), O / 2 channels if gated."""
    call = ready(call)
    if in_pieces(call):
        y = ACTIVATIONS[call.activation].value(*sums(call).chunk(2, 1))
        return allocate(call).copy_(y)
    y = allocate(call)
    run(forward(call, y))
    return y


def causal_conv1d_backward(
    call: Convolution, dy: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """dx, dstate, dw and db, as `rnnkit.reference.causal_conv1d.causal_conv1d_backward`."""
    call, dy = ready(call), near(dy)
    dx, dstate, dw, db = allocate_gradients(call, wanted)
    da = gradient_of_sums(call, dy)
    if wanted[0]:
        run(inputs_gradient(call, da, dx, dstate))
    if wanted[1]:
        parts_of = partials(call)
        run(parameters_gradient(call, da, *parts_of))
        dw.copy_(parts_of[0].sum(0))
        if call.bias is not None:
            db.copy_(parts_of[1].sum(0))
    return dx, dstate, dw, db


def in_pieces(call: Convolution) -> bool:
    """Whether a gate's two halves read other channels, so that one program cannot have both."""
    return parts(call.activation) == 2 and call.groups > 1 and not depthwise(call)


def sums(call: Convolution) -> Tensor:
    """What the activation takes, (N, O, ceil(L / stride))."""
    plain = call._replace(activation=None)
    a = allocate(plain)
    run(forward(plain, a))
    return a


def gradient_of_sums(call: Convolution, dy: Tensor) -> Tensor:
    """The gradient of what the activation takes; the sums are computed anew."""
    if call.activation is None:
        return dy
    if in_pieces(call):
        return torch.cat(ACTIVATIONS[call.activation].vjp(dy, *sums(call).chunk(2, 1)), 1)
    da = like(call.x, (call.x.shape[0], call.weight.shape[0], call.length), call.channels_last)
    run(forward(call, da, dy))
    return da
