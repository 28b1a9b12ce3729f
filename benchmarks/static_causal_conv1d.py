"""The kernels of the causal convolution that `benchmarks static` compiles."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch

from rnnkit.ops.convolution import Convolution, allocate, allocate_gradients, like
from rnnkit.triton import convolution as conv
from rnnkit.triton.launch import Launch

from .static_targets import DTYPES


class Kind(NamedTuple):
    """A convolution of C to O channels, twice O rows of weights if gated."""

    C: int
    O: int  # noqa: E741
    K: int
    groups: int
    activation: str | None
    stride: int
    state: bool


KINDS = (
    Kind(1, 32, 2, 1, None, 1, False),
    Kind(20, 20, 2, 1, "relu", 1, False),
    Kind(32, 32, 2, 1, "gated", 1, True),
    Kind(64, 64, 2, 1, "gated", 1, False),
    Kind(256, 256, 3, 1, None, 2, True),
    Kind(100, 200, 4, 2, "tanh", 1, True),
    Kind(64, 64, 4, 64, "silu", 1, True),
    Kind(64, 128, 3, 64, "gated", 2, True),
    Kind(12, 24, 3, 3, "silu", 1, True),
)


def build(kind: Kind, dtype: torch.dtype, channels_last: bool) -> dict[str, Launch]:
    """The launches that dispatch would make, on tensors without memory."""
    N, L, K, rows = 4, 1000, kind.K, kind.O * (1 + (kind.activation == "gated"))

    def tensor(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = like(tensor(), (N, kind.C, L), channels_last)
    past = tensor(N, kind.C, (K - 1) * 5) if kind.state else None
    weight, bias = tensor(rows, kind.C // kind.groups, K), tensor(rows)
    static = kind.stride, 5, kind.groups, kind.activation, channels_last
    call = conv.ready(Convolution(x, weight, bias, past, *static))
    y, da = allocate(call), like(x, (N, rows, call.length), channels_last)
    dx, dstate, _, _ = allocate_gradients(call, (True, True))
    made = {
        "y": conv.forward(call, y),
        "dx": conv.inputs_gradient(call, da, dx, dstate),
        "dw": conv.parameters_gradient(call, da, *conv.partials(call)),
    }
    return made if kind.activation is None else made | {"sums": conv.forward(call, da, y)}


def roundings(dtype: str) -> Iterator[str]:
    """How products of this dtype may be rounded, with torch's switch for convolutions set so."""
    switches: Any = torch.backends.cudnn
    settings = switches.conv
    before = settings.fp32_precision
    try:
        for rounding in ("ieee", "tf32") if dtype == "fp32" else ("ieee",):
            settings.fp32_precision = rounding
            yield rounding
    finally:
        settings.fp32_precision = before


def launches(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Launch]]:
    """For every target, dtype, kind and layout: y, and the three gradients."""
    kinds = [kind for kind in KINDS if not args.sizes or kind.C in args.sizes]
    several = product(kinds, (False, True))
    for (target, dtype), rounding, (kind, last) in nested(args, list(several)):
        row = {"target": target, "dtype": dtype, "rounding": rounding, **kind._asdict()}
        for name, launch in build(kind, DTYPES[dtype], last).items():
            yield row | {"channels_last": last, "backward": name != "y", "form": name}, launch


def nested(args: argparse.Namespace, kinds: list[Any]) -> Iterator[tuple[Any, str, Any]]:
    """Every target and dtype, how its products may be rounded, and every kind."""
    for chosen in product(args.targets, args.dtypes):
        for rounding in roundings(chosen[1]):
            for kind in kinds:
                yield chosen, rounding, kind
