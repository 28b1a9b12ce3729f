"""Layer normalisation in plain PyTorch: the definition, and the judge of every other backend.

Ba, Kiros, Hinton: "Layer Normalization", 2016 (arXiv:1607.06450), equations 3 and 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .activations import ACTIVATIONS

if TYPE_CHECKING:
    from ..dispatch import LayerProblem


def why_not(problem: LayerProblem) -> str | None:
    """It runs everything."""
    return None


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = activation(n * weight + bias), n = (v - mean(v)) / sqrt(var(v) + eps), v = x + residual.

    Args:
        x, residual: (M, N); mean and (biased) variance are a row's.
        weight, bias: (N,); None means one and zero.
        dtype: of y.

    Returns:
        y (M, N); total (M, N), which is v, or (0, N) without a residual; stats (2, M), the mean and
        1 / sqrt(var + eps), in the dtype of all arithmetic: v's, or float32 if v's is a half dtype.
    """
    total = x.new_empty(0, x.shape[1]) if residual is None else (x + residual).contiguous()
    v = x if residual is None else total
    mean, scale = statistics(v, eps)
    a = affine((wide(v) - mean) * scale, weight, bias)
    y = ACTIVATIONS[activation].value(a).to(dtype, copy=True).contiguous()
    return y, total, torch.stack((mean[:, 0], scale[:, 0]))


def layer_norm_backward(
    dy: Tensor | None,
    dtotal: Tensor | None,
    v: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor | None,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of v (M, N), and of weight and bias (N,), or (0,) for one that is absent.

    stats: as `layer_norm` returns them; None computes them anew, so that all can be differentiated.
    """
    mean, scale = statistics(v, eps) if stats is None else stats[..., None].unbind(0)
    n = (wide(v) - mean) * scale
    da = torch.zeros_like(n) if dy is None else dy.to(n.dtype)
    (da,) = ACTIVATIONS[activation].vjp(da, affine(n, weight, bias))
    dn = affine(da, weight, None)
    dv = scale * (dn - dn.mean(1, keepdim=True) - n * (dn * n).mean(1, keepdim=True))
    dv = dv if dtotal is None else dv + dtotal
    dw = v.new_empty(0) if weight is None else (da * n).sum(0).to(weight.dtype)
    db = v.new_empty(0) if bias is None else da.sum(0).to(bias.dtype)
    return dv.to(v.dtype).contiguous(), dw, db


def wide(v: Tensor) -> Tensor:
    """v in the dtype of the arithmetic: a half dtype's is float32."""
    return v.to(torch.promote_types(v.dtype, torch.float32))


def statistics(v: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The mean of each row and 1 / sqrt(var + eps), both (M, 1)."""
    v = wide(v)
    mean = v.mean(1, keepdim=True)
    return mean, 1 / ((v - mean).square().mean(1, keepdim=True) + eps).sqrt()


def affine(n: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    n = n if weight is None else n * weight.to(n.dtype)
    return n if bias is None else n + bias.to(n.dtype)
