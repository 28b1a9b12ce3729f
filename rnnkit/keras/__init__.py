"""Keras 3 layers and models, on any backend, as modules of torch and rnnkit with their weights.

It needs Keras, and so is imported by itself: `import rnnkit.keras`.
"""

from __future__ import annotations

import os
from typing import Any

import keras
from torch import nn

from .layers import module_of

__all__ = ["from_keras"]


def from_keras(source: Any) -> nn.Module:
    """The module that computes what a Keras layer or model computes, with a copy of its weights.

    Args:
        source: a layer with weights; a Sequential, or a functional model whose layers form a chain;
            or the path of such a model, saved as .keras or .h5, which Keras loads.

    Returns the module, in eval mode, on the CPU, its parameters of the Keras layer's dtype, without
    gradients where Keras does not train. It is of torch.nn or rnnkit, or one of
    `rnnkit.keras.modules`: for a model a `Sequential` of parts under the names of its layers. Input
    and output are Keras's, (batch, time, features); with `lengths` (batch,) a recurrent layer or a
    model masks all steps past a row's length. docs/keras.md says what each layer becomes.
    Regularisers, constraints, the loss, the optimiser and metrics stay behind.

    Raises TypeError for what is no Keras 3 layer, and ValueError, naming the layer and its
    argument, for what has no equal here.
    """
    layer = load(source) if isinstance(source, str | os.PathLike) else source
    if not isinstance(layer, keras.Layer):
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        raise TypeError(f"source: expected a Keras 3 layer, a model or a path, got {kind}")
    module = module_of(layer)
    if not layer.trainable:
        module.requires_grad_(False)
    return module.eval()


def load(path: str | os.PathLike[str]) -> Any:
    """The model in a file."""
    if os.fspath(path).endswith((".weights.h5", ".weights.json")):
        raise ValueError(
            f"{os.fspath(path)} holds weights without layers: build the model in Keras, call its "
            "load_weights, and give from_keras the model"
        )
    return keras.saving.load_model(path, compile=False)
