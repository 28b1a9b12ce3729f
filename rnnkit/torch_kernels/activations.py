"""Activations by torch's own functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def gated(y: Tensor) -> Tensor:
    """tanh(first half of the channels) * sigmoid(second half): (N, 2C, L) to (N, C, L)."""
    filters, gates = y.chunk(2, dim=1)
    return torch.tanh(filters) * torch.sigmoid(gates)


ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda y: y,
    "relu": torch.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "gated": gated,
}
