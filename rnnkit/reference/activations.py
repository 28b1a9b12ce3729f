"""Activations and their derivatives in plain PyTorch.

Only functions whose result for an element does not depend on the element's place: torch.sigmoid's
does, on a CPU, in the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Activation(NamedTuple):
    """value(*parts) is the result; vjp(dy, *parts) the gradient of each part."""

    value: Callable[..., Tensor]
    vjp: Callable[..., tuple[Tensor, ...]]


def sigmoid(v: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-v))


def silu_vjp(dy: Tensor, a: Tensor) -> tuple[Tensor]:
    s = sigmoid(a)
    return (dy * s * (1 + a * (1 - s)),)


def gated_vjp(dy: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    u, s = torch.tanh(f), sigmoid(g)
    return dy * s * (1 - u * u), dy * u * s * (1 - s)


ACTIVATIONS: dict[str | None, Activation] = {
    None: Activation(lambda a: a, lambda dy, a: (dy,)),
    "relu": Activation(torch.relu, lambda dy, a: (torch.where(a <= 0, 0, dy),)),
    "silu": Activation(lambda a: a * sigmoid(a), silu_vjp),
    "tanh": Activation(torch.tanh, lambda dy, a: (dy * (1 - torch.tanh(a) ** 2),)),
    "gated": Activation(lambda f, g: torch.tanh(f) * sigmoid(g), gated_vjp),
}
