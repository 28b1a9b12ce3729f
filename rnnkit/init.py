"""Initial values of parameters, beside torch.nn's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .layers.base import Gated, fill_forget_gate


@torch.no_grad()
def keras_(module: nn.Module) -> nn.Module:
    """Draws the parameters of every layer inside a module as Keras would, in place.

    Kernels are Glorot-uniform, recurrent ones orthogonal, biases zero, and the forget gate's bias
    of an LSTM 1 in bias_ih (Keras's unit_forget_bias, after Jozefowicz et al. 2015), or the
    layer's own forget_bias. So are torch.nn's Linear and convolutions. Norms keep gain 1 and
    bias 0; peepholes, which Keras lacks, become 0.

    Args:
        module: a layer, or a model with layers inside; others than these stay as they are.

    Returns the module.
    """
    for layer in module.modules():
        if isinstance(layer, Gated | nn.RNNBase | nn.RNNCellBase):
            recurrent_(layer)
        elif isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def recurrent_(layer: Any) -> None:
    """Draws the parameters of one recurrent layer, ours or torch.nn's."""
    heads, H, forget = getattr(layer, "num_heads", 1), layer.hidden_size, forget_bias(layer)
    for name, value in layer.named_parameters(recurse=False):
        if name.startswith("weight_hh"):
            # Orthogonal as Keras has it: all gates of a block in one matrix. Half precision has no
            # factorisation.
            wide = torch.promote_types(value.dtype, torch.float32)
            for block in value.unflatten(0, (-1, heads, H // heads)).unbind(1):
                drawn = nn.init.orthogonal_(torch.empty_like(block.flatten(0, 1), dtype=wide))
                block.copy_(drawn.view_as(block))
        elif name.startswith(("weight_ih", "weight_hr")):
            nn.init.xavier_uniform_(value)
        elif name.startswith("norm_") and "weight" in name:
            nn.init.ones_(value)
        else:
            nn.init.zeros_(value)
        if name.startswith("bias_ih") and forget is not None:
            fill_forget_gate(value, H, forget)


def forget_bias(layer: nn.Module) -> float | None:
    """What Keras gives the forget gate; None where there is no such gate."""
    if isinstance(layer, Gated) and layer.kind == "lstm":
        return 1.0 if layer.forget_bias is None else layer.forget_bias
    return 1.0 if isinstance(layer, nn.LSTM | nn.LSTMCell) else None
