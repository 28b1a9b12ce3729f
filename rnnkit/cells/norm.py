"""Normalisation over a cell's H units, and its derivative (Ba et al. 2016, equation 3)."""

from __future__ import annotations

from torch import Tensor

EPS = 1e-5


def normalise(v: Tensor) -> tuple[Tensor, Tensor]:
    """(v - mean) / sqrt(var + EPS) over the last dimension (biased variance), and 1 / sqrt."""
    centred = v - v.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return centred * scale, scale


def normalise_vjp(n: Tensor, scale: Tensor, dn: Tensor) -> Tensor:
    """The gradient of v, given what `normalise` returned and the gradient of n."""
    return scale * (dn - dn.mean(-1, keepdim=True) - n * (dn * n).mean(-1, keepdim=True))
