"""The kernels of layer normalisation that `benchmarks static` compiles."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch

from rnnkit.ops.rows import allocate
from rnnkit.triton.launch import Launch
from rnnkit.triton.layer_norm import backward_launches, forward_launch

from .static_targets import DTYPES

SIZES = (1, 20, 64, 100, 768, 1024, 4096, 8192, 16384, 65536)
# (weight and bias, residual or its gradient, activation)
VARIANTS = (
    (False, False, None),
    (True, False, None),
    (True, True, None),
    (True, True, "relu"),
    (True, True, "silu"),
    (True, True, "tanh"),
)


class Case(NamedTuple):
    """What is compiled; backward takes several kernels if rows are long."""

    target: str
    dtype: str
    N: int
    backward: bool
    affine: bool
    residual: bool
    activation: str | None


def build(case: Case) -> list[Launch]:
    """The launches that dispatch would make for this case, on tensors without memory."""
    dtype, M, N, act = DTYPES[case.dtype], 4096, case.N, case.activation

    def tensor(given: bool, *shape: int) -> torch.Tensor | None:
        return torch.empty(shape, dtype=dtype, device="meta") if given else None

    x, more = torch.empty(M, N, dtype=dtype, device="meta"), tensor(case.residual, M, N)
    weight, bias = tensor(case.affine, N), tensor(case.affine, N)
    made = allocate(x, more, dtype)
    if not case.backward:
        return [forward_launch(x, weight, bias, more, 1e-5, act, *made)]
    return backward_launches(x, more, x, weight, bias, made[2], act, made[0])


def launches(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Launch]]:
    """For every target, dtype, size and pass: every variant."""
    kinds = product(args.targets, args.dtypes, args.sizes or SIZES, (False, True), VARIANTS)
    for target, dtype, N, backward, variant in kinds:
        case = Case(target, dtype, N, backward, *variant)
        for launch in build(case):
            yield case._asdict() | {"form": launch.kernel.__name__}, launch
