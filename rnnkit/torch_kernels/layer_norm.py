"""Layer normalisation on torch.nn's own kernels: a sum, F.layer_norm and an activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from .activations import ACTIVATIONS
from .whole import why_not

if TYPE_CHECKING:
    from ..dispatch import LayerProblem

__all__ = ["layer_norm", "note", "why_not"]


def note(problem: LayerProblem) -> str:
    return "torch.nn.functional.layer_norm; a residual and an activation are kernels of their own"


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    """y and v = x + residual, both (*, *normalized_shape)."""
    v = x if residual is None else x + residual
    y = F.layer_norm(v, tuple(normalized_shape), weight, bias, eps)
    return ACTIVATIONS[activation](y), v
