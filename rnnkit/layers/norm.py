"""LayerNorm: torch.nn.LayerNorm with an optional fused residual and activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..activations import POINTWISE, check_activation
from ..ops.layer_norm import layer_norm
from ..ops.rows import checked_sizes


class LayerNorm(torch.nn.LayerNorm):
    """torch.nn.LayerNorm: the same arguments, state_dict, outputs and errors.

    Ba, Kiros, Hinton: "Layer Normalization", 2016 (arXiv:1607.06450), equations 3 and 4.

    Args:
        activation: None, "relu", "silu" or "tanh", applied to the normalised result.

    Raises ValueError for another activation or a negative size in normalized_shape.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        check_activation(activation, POINTWISE)
        sizes = checked_sizes(normalized_shape)
        super().__init__(list(sizes), eps, elementwise_affine, bias, device, dtype)
        self.activation = activation

    def forward(
        self, input: Tensor, residual: Tensor | None = None, return_sum: bool = False
    ) -> Any:
        """`activation(LN(input + residual))`, all `(*, *normalized_shape)`, of any floating dtype.

        With return_sum, also input + residual, with which a pre-norm network goes on:
        `y, x = norm(x, branch, return_sum=True)`.

        Raises ValueError for a residual of another shape than input, and torch's RuntimeError for
        an input that does not end in normalized_shape.
        """
        return layer_norm(
            input,
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            residual,
            self.activation,
            return_sum,
        )

    def extra_repr(self) -> str:
        extra = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + extra
