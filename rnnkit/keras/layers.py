"""What each Keras layer becomes: modules that follow each other, by the suffix of their name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import torch
from keras.src.models import Functional
from torch import Tensor, nn

from ..activations import POINTWISE
from ..layers.conv import CausalConv1d
from ..layers.norm import LayerNorm
from . import modules
from .graph import chain
from .recurrent import LAYERS as RECURRENT
from .recurrent import bidirectional, recurrent
from .weights import activation_name, check, copy, dtype, refuse

Parts = dict[str, nn.Module]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hard_shrink": nn.Hardshrink,
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_silu": nn.Hardswish,
    "hard_tanh": nn.Hardtanh,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
    "log_sigmoid": nn.LogSigmoid,
    "log_softmax": partial(nn.LogSoftmax, -1),
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "soft_shrink": nn.Softshrink,
    "softmax": partial(nn.Softmax, -1),
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
    "tanh_shrink": nn.Tanhshrink,
}


def activation(layer: Any, suffix: str = "activation") -> Parts:
    """The module of a layer's argument `activation`; none if it is linear."""
    if isinstance(layer.activation, keras.Layer):
        return {suffix: module_of(layer.activation)}
    name = activation_name(layer)
    if name == "linear":
        return {}
    if name not in ACTIVATIONS:
        refuse(layer, f"activation {name} has no module in torch.nn")
    return {suffix: ACTIVATIONS[name]()}


def dense(layer: Any) -> Parts:
    inputs, units = layer.kernel.shape
    linear = nn.Linear(inputs, units, layer.use_bias, dtype=dtype(layer))
    copy(linear.weight, layer.kernel, lambda v: v.T)
    if layer.use_bias:
        copy(linear.bias, layer.bias)
    return {"": linear} | activation(layer)


def embedding(layer: Any) -> Parts:
    kind = modules.MaskedEmbedding if layer.mask_zero else nn.Embedding
    made = kind(layer.input_dim, layer.output_dim, dtype=dtype(layer))
    copy(made.weight, layer.embeddings)
    return {"": made}


def layer_norm(layer: Any) -> Parts:
    shape = layer.get_build_config()["input_shape"]
    axes = sorted(axis % len(shape) for axis in layer.axis)
    if axes != list(range(len(shape) - len(axes), len(shape))):
        refuse(layer, f"axis must be the last ones of {len(shape)}, got {layer.axis}")
    sizes, affine = [shape[axis] for axis in axes], layer.scale or layer.center
    norm = LayerNorm(sizes, layer.epsilon, affine, layer.center, dtype=dtype(layer))
    if layer.center:
        copy(norm.bias, layer.beta)
    if layer.scale:
        copy(norm.weight, layer.gamma)
    elif layer.center:
        # torch.nn has no bias without a weight: it stays 1.
        norm.weight.requires_grad_(False)
    return {"": norm}


def conv(layer: Any) -> Parts:
    return convolution(layer, layer.groups, lambda kernel: kernel.permute(2, 1, 0))


def depthwise_conv(layer: Any) -> Parts:
    def change(kernel: Tensor) -> Tensor:
        return kernel.permute(1, 2, 0).reshape(-1, 1, len(kernel))

    return convolution(layer, layer.kernel.shape[1], change)


PADDINGS = {"causal": CausalConv1d, "same": modules.SameConv1d, "valid": modules.Conv1d}


def convolution(layer: Any, groups: int, change: Callable[[Tensor], Tensor]) -> Parts:
    """A convolution in so many groups; change makes torch's weight of Keras's kernel."""
    shape = change(torch.empty(tuple(layer.kernel.shape), device="meta")).shape
    options = {
        "stride": layer.strides[0],
        "dilation": layer.dilation_rate[0],
        "groups": groups,
        "bias": layer.use_bias,
        "dtype": dtype(layer),
    }
    after = activation(layer)
    if layer.padding == "causal":
        options["channels_last"] = True
        name = getattr(layer.activation, "__name__", "")
        if name in POINTWISE:
            options["activation"], after = name, {}
    made = PADDINGS[layer.padding](shape[1] * groups, shape[0], shape[2], **options)
    copy(made.weight, layer.kernel, change)
    if layer.use_bias:
        copy(made.bias, layer.bias)
    return {"": made} | after


def pool(layer: Any) -> Parts:
    if layer.padding != "valid":
        refuse(layer, f"padding must be 'valid', got {layer.padding!r}")
    kind = modules.MaxPool1d if layer.pool_mode == "max" else modules.AvgPool1d
    return {"": kind(layer.pool_size[0], layer.strides[0])}


def softmax(layer: Any) -> Parts:
    if layer.axis != -1:
        refuse(layer, f"axis must be -1, got {layer.axis}")
    return {"": nn.Softmax(-1)}


def relu(layer: Any) -> Parts:
    return {"": nn.LeakyReLU(layer.negative_slope) if layer.negative_slope else nn.ReLU()}


def time_distributed(layer: Any) -> Parts:
    if type(layer.layer) is keras.layers.Dense:
        # torch.nn.Linear takes any number of leading dimensions.
        check(layer.layer)
        return dense(layer.layer)
    return {"": modules.TimeDistributed(module_of(layer.layer))}


def parts_of_model(model: Any) -> Parts:
    """The modules of all layers of a model, under the layers' names."""
    parts: Parts = {}
    for layer in model.layers if type(model) is keras.Sequential else chain(model):
        for name, part in convert(layer).items():
            if name in parts:
                refuse(layer, f"there is another part named {name!r}; a layer may occur once")
            parts[name] = part
    return parts


def module_of(layer: Any) -> nn.Module:
    """One module that does what a layer or a model does."""
    if type(layer) in MODELS:
        check(layer)
        return modules.Sequential(OrderedDict(parts_of_model(layer)))
    parts = convert(layer)
    return next(iter(parts.values())) if len(parts) == 1 else modules.Sequential(OrderedDict(parts))


def convert(layer: Any) -> Parts:
    """The modules, by name, that do one after the other what a layer does."""
    if type(layer) not in CONVERTERS:
        known = ", ".join(sorted(kind.__name__ for kind in CONVERTERS))
        refuse(layer, f"there is no conversion of this class, only of {known}")
    check(layer)
    # A module's name has no dot.
    name = layer.name.replace(".", "_")
    return {
        f"{name}_{suffix}" if suffix else name: part
        for suffix, part in CONVERTERS[type(layer)](layer).items()
    }


L = keras.layers
MODELS = (keras.Sequential, Functional)
CONVERTERS: dict[type, Callable[[Any], Parts]] = {
    **dict.fromkeys(RECURRENT, recurrent),
    **dict.fromkeys(MODELS, parts_of_model),
    L.Activation: partial(activation, suffix=""),
    L.AveragePooling1D: pool,
    L.Bidirectional: bidirectional,
    L.Conv1D: conv,
    L.Dense: dense,
    L.DepthwiseConv1D: depthwise_conv,
    L.Dropout: lambda layer: {"": nn.Dropout(layer.rate)},
    L.ELU: lambda layer: {"": nn.ELU(layer.alpha)},
    L.Embedding: embedding,
    L.Flatten: lambda layer: {"": nn.Flatten()},
    L.GlobalAveragePooling1D: lambda layer: {"": modules.GlobalAveragePool1d()},
    L.GlobalMaxPooling1D: lambda layer: {"": modules.GlobalMaxPool1d()},
    L.Identity: lambda layer: {},
    L.LayerNormalization: layer_norm,
    L.LeakyReLU: lambda layer: {"": nn.LeakyReLU(layer.negative_slope)},
    L.Masking: lambda layer: {"": modules.Masking(layer.mask_value)},
    L.MaxPooling1D: pool,
    L.ReLU: relu,
    L.RepeatVector: lambda layer: {"": modules.RepeatVector(layer.n)},
    L.Softmax: softmax,
    L.SpatialDropout1D: lambda layer: {"": modules.SpatialDropout1d(layer.rate)},
    L.TimeDistributed: time_distributed,
}
