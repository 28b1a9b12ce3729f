"""Causal convolution on torch.nn's own kernels: a padded copy, a convolution, an activation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.convolution import Convolution
from .activations import ACTIVATIONS
from .whole import why_not

if TYPE_CHECKING:
    from ..dispatch import LayerProblem

__all__ = ["causal_conv1d", "note", "why_not"]


def note(problem: LayerProblem) -> str:
    return "torch.nn.functional.conv1d on a left-padded copy, and torch's activation"


def causal_conv1d(call: Convolution) -> Tensor:
    """y (N, O, ceil(L / stride)), O / 2 channels if gated."""
    x, context = call.x, call.context
    if call.state is not None:
        seen = torch.cat([call.state, x], 2)
    else:
        # Padding by nothing would still copy.
        seen = F.pad(x, (context, 0)) if context else x
    if x.shape[2] == 0:
        # conv1d refuses an input shorter than its kernel: compute one step and drop it, which
        # keeps dtype (autocast) and gradients (zeros) what they are for any other length.
        seen = F.pad(seen, (0, 1))
    y = F.conv1d(seen, call.weight, call.bias, call.stride, 0, call.dilation, call.groups)
    return ACTIVATIONS[call.activation](y[..., :0] if x.shape[2] == 0 else y)
