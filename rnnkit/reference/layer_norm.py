"""Layer normalisation in plain PyTorch: the definition and the fallback.

Ba, Kiros, Hinton: "Layer Normalization", 2016 (arXiv:1607.06450), equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda y: y,
    "relu": torch.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """activation((v - mean(v)) / sqrt(var(v) + eps) * weight + bias) with v = x + residual.

    Shapes: x and residual (*, *normalized_shape), weight and bias normalized_shape; the result has
    x's shape. Mean and (biased) variance run over normalized_shape, in float32 for half dtypes.
    Dtypes follow torch: x + residual is promoted, then torch.nn.functional.layer_norm's rules hold.

    Raises ValueError for an unknown activation or a residual of another shape than x, and
    RuntimeError (torch's own) for x, weight or bias that do not end in normalized_shape.
    """
    activate = named(ACTIVATIONS, activation)
    if residual is not None:
        # A broadcast residual is more often a mistake than a wish, and no fused kernel takes one.
        if residual.shape != x.shape:
            raise ValueError(
                f"residual must have the input's shape {tuple(x.shape)}, "
                f"got {tuple(residual.shape)}"
            )
        x = x + residual
    return activate(F.layer_norm(x, tuple(normalized_shape), weight, bias, eps))


def named(
    activations: dict[str | None, Callable[[Tensor], Tensor]], activation: str | None
) -> Callable[[Tensor], Tensor]:
    """The function called `activation`; ValueError lists what there is."""
    if activation not in activations:
        raise ValueError(f"activation must be one of {list(activations)}, got {activation!r}")
    return activations[activation]
