"""Normalisation over a cell's H units, and its derivative (Ba et al. 2016, equation 3)."""

from __future__ import annotations

from torch import Tensor

EPS = 1e-5


def normalise(v: Tensor, eps: float = EPS, dims: int = 1) -> tuple[Tensor, Tensor]:
    """(v - mean) / sqrt(var + eps) over the last `dims` dimensions (biased), and 1 / sqrt."""
    over = tuple(range(-dims, 0))
    centred = v - v.mean(over, keepdim=True)
    scale = (centred.square().mean(over, keepdim=True) + eps).rsqrt()
    return centred * scale, scale


def normalise_vjp(n: Tensor, scale: Tensor, dn: Tensor, dims: int = 1) -> Tensor:
    """The gradient of v, given what `normalise` returned and the gradient of n."""
    over = tuple(range(-dims, 0))
    return scale * (dn - dn.mean(over, keepdim=True) - n * (dn * n).mean(over, keepdim=True))
