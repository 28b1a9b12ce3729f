"""Causal dilated convolution in plain PyTorch: the definition and the fallback.

van den Oord et al.: "WaveNet: A Generative Model for Raw Audio", 2016 (arXiv:1609.03499),
section 2.1; the gated activation is its equation 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layer_norm import ACTIVATIONS as POINTWISE
from .layer_norm import named


def gated(y: Tensor) -> Tensor:
    """tanh(first half of the channels) * sigmoid(second half): (N, 2C, L) to (N, C, L)."""
    filters, gates = y.chunk(2, dim=1)
    return torch.tanh(filters) * torch.sigmoid(gates)


ACTIVATIONS = {**POINTWISE, "gated": gated}


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    activation: str | None = None,
    state: Tensor | None = None,
) -> Tensor:
    """y[n, o, t] = activation(bias[o] + sum_{c,k} weight[o, c, k] * x[n, c, t*stride - (K-1-k)*d]).

    Shapes: x (N, C, L), weight (O, C / groups, K) as in torch.nn.functional.conv1d, bias (O,),
    d = dilation, state (N, C, (K-1)*d): the inputs before x, zeros if None. The result is
    (N, O, ceil(L / stride)), with O / 2 channels if gated; L = 0 and N = 0 give empty results.
    Any floating dtype, x, weight and state alike.

    Raises ValueError, naming the argument, for a wrong rank, shape, state dtype, stride, dilation,
    groups or activation.
    """
    activate = named(ACTIVATIONS, activation)
    check(x, weight, bias, stride, dilation, groups, activation)
    context = (weight.shape[2] - 1) * dilation
    if state is None:
        # Padding by nothing would still copy.
        x_padded = F.pad(x, (context, 0)) if context else x
    else:
        check_state(state, x, context)
        x_padded = torch.cat([state, x], dim=2)
    if x.shape[2] == 0:
        # conv1d refuses an input shorter than its kernel: compute one step and drop it, which
        # keeps dtype (autocast) and gradients (zeros) what they are for any other length.
        x_padded = F.pad(x_padded, (0, 1))
    y = F.conv1d(x_padded, weight, bias, stride, 0, dilation, groups)
    return activate(y[..., :0] if x.shape[2] == 0 else y)


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    dilation: int,
    groups: int,
    activation: str | None,
) -> None:
    """ValueError for the first argument that does not fit the others."""
    for name, value in (("stride", stride), ("dilation", dilation), ("groups", groups)):
        positive(name, value)
    if weight.dim() != 3 or 0 in weight.shape:
        raise ValueError(f"weight must be (O, C / groups, K), none 0, got {tuple(weight.shape)}")
    rows, channels = weight.shape[0], weight.shape[1] * groups
    if rows % groups:
        raise ValueError(f"groups must divide the {rows} rows of weight, got {groups}")
    if activation == "gated" and rows % 2:
        raise ValueError(f"weight must have an even number of rows if gated, got {rows}")
    if x.dim() != 3 or x.shape[1] != channels:
        raise ValueError(f"x must be (N, {channels}, L), got {tuple(x.shape)}")
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"bias must be ({rows},), got {tuple(bias.shape)}")


def check_state(state: Tensor, x: Tensor, context: int) -> None:
    """ValueError unless state can stand before x."""
    expected = (x.shape[0], x.shape[1], context)
    if state.shape != expected or state.dtype != x.dtype or state.device != x.device:
        raise ValueError(
            f"state must be {expected} of {x.dtype} on {x.device}, as the input; "
            f"got {tuple(state.shape)} of {state.dtype} on {state.device}"
        )


def positive(name: str, value: int) -> int:
    """value, or ValueError unless it is an integer of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return value
