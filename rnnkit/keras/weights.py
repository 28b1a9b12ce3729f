"""What every conversion needs: errors, checks, and the copy of a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import keras
import torch
from torch import Tensor

# The only values of these attributes, of whatever layer has them, that there is an equal for.
ONLY = {
    "data_format": "channels_last",
    "keepdims": False,
    "lora_enabled": False,
    "max_value": None,
    "noise_shape": None,
    "quantization_mode": None,
    "rms_scaling": False,
    "stateful": False,
    "threshold": 0,
}


def refuse(layer: Any, why: str) -> NoReturn:
    raise ValueError(f"{type(layer).__name__} {layer.name!r}: {why}")


def check(layer: Any) -> None:
    """ValueError for what no layer may have: mixed precision, no weights yet, unknown forms."""
    if not layer.built:
        refuse(layer, "has no weights yet; call it once, or put an Input before it")
    if layer.compute_dtype != layer.variable_dtype:
        refuse(
            layer,
            f"computes in {layer.compute_dtype} with weights of {layer.variable_dtype}; expected "
            "a dtype policy with one dtype (autocast does the same in torch)",
        )
    for name, only in ONLY.items():
        value = getattr(layer, name, only)
        if value != only:
            refuse(layer, f"{name} must be {only!r}, got {value!r}")


def dtype(layer: Any) -> torch.dtype:
    found: torch.dtype = getattr(torch, layer.variable_dtype)
    return found


@torch.no_grad()
def copy(
    parameter: Tensor, variable: Any, change: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Copies a Keras variable, in the layout that `change` gives it, and whether it is trained."""
    # By way of numpy, which every backend of Keras gives, but without bfloat16.
    value = torch.from_numpy(variable.numpy().astype("float64"))
    parameter.copy_(value if change is None else change(value))
    parameter.requires_grad_(variable.trainable)


def activation_name(layer: Any, argument: str = "activation") -> str:
    """The name of the Keras function that an argument of a layer holds."""
    function = getattr(layer, argument)
    name = getattr(function, "__name__", repr(function))
    # A function of the user's own may have any name.
    if getattr(keras.activations, name, None) is not function:
        refuse(layer, f"{argument} {name} is none of keras.activations")
    return name
