"""The gated residual blocks of a WaveNet on torch's own kernels, differentiated by torch itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops.convolution import Convolution
from .activations import gated
from .causal_conv1d import causal_conv1d
from .whole import why_not

if TYPE_CHECKING:
    from ..dispatch import LayerProblem

__all__ = ["convolve", "note", "wavenet", "why_not"]


def note(problem: LayerProblem) -> str:
    return "of each block a convolution, the gate's four operators and a product"


def wavenet(
    x: Tensor,
    w: Sequence[Tensor],
    b: Sequence[Tensor],
    r: Sequence[Tensor],
    rb: Sequence[Tensor],
    condition: Tensor | None,
    dilations: Sequence[int],
) -> tuple[list[Tensor], Tensor]:
    """D blocks in a row: z = tanh(f) * sigmoid(g), x = x + r @ z + rb, for each block's (f, g) =
    w * x + b + condition, the convolution dilated and causal.

    Shapes: x (N, C, L); w, of each block, (2C, C, K), b (2C,), r (C, C), rb (C,); condition
    (N, D * 2C, L), or (N, D * 2C, 1) for all steps, or None. r and rb are D, or D - 1 if nothing
    is to go on from the last block. Returns the x after each of those blocks, each (N, C, L), and
    all z (N, D * C, L). Any floating dtype, the same for all.
    """
    shares: Sequence[Tensor | None] = [None] * len(w)
    if condition is not None:
        shares = condition.chunk(len(w), 1)
    xs, zs = [], []
    for i, share in enumerate(shares):
        a = convolve(x, w[i], b[i], dilations[i])
        zs.append(gated(a if share is None else a + share))
        if i < len(r):
            x = x + convolve(zs[i], r[i][..., None], rb[i])
            xs.append(x)
    return xs, zs[0] if len(zs) == 1 else torch.cat(zs, 1)


def convolve(x: Tensor, w: Tensor, b: Tensor | None, dilation: int = 1) -> Tensor:
    """The causal convolution of x (N, C, L) with w (O, C, K): (N, O, L)."""
    return causal_conv1d(Convolution(x, w, b, None, 1, dilation, 1, None, False))
