"""Layers of other libraries as providers, or why they are absent."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from .problem import Case
from .timing import Call

NO_ADAPTER = "nobody has written yet how our weights become its own"


def missing(package: str) -> str | None:
    """Why a package cannot be used; None if it can."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        return f"{package} cannot be imported: {error}"
    return None


def liger(case: Case) -> Call | str:
    """Liger's LayerNorm, in Triton."""
    reason = missing("liger_kernel.ops.layer_norm")
    if reason is not None or case.twin is None or not case.input.is_cuda:
        return reason or "it needs a GPU"
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    layer, apply = case.ours, LigerLayerNormFunction.apply
    return case.calling(lambda x: apply(x, layer.weight, layer.bias, 1e-5), layer)


def causal_conv1d(case: Case) -> Call | str:
    """Tri Dao's causal convolution: depthwise, without dilation, in CUDA."""
    reason = missing("causal_conv1d")
    if reason is not None or not case.input.is_cuda:
        return reason or "it needs a GPU"
    if not case.problem.cell.startswith("depthwise"):
        return "it is depthwise"
    from causal_conv1d import causal_conv1d_fn

    layer: Any = case.ours

    def convolve(x: Tensor) -> Tensor:
        found: Tensor = causal_conv1d_fn(x, layer.weight.squeeze(1), layer.bias)
        return found

    return case.calling(convolve, layer)


def flashrnn(case: Case) -> Call | str:
    """FlashRNN's fused CUDA kernels."""
    return missing("flashrnn") or NO_ADAPTER


def haste(case: Case) -> Call | str:
    """Haste's layers: cuBLAS and one pointwise kernel a step."""
    return missing("haste_pytorch") or NO_ADAPTER
