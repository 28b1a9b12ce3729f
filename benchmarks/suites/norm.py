"""Layer normalisation over the N columns of M rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import nn

import rnnkit

from .. import peers
from ..problem import MODES, Built, Case, Choice, build_case
from ..timing import Plan
from . import dtypes, made

SHAPES = {
    "cpu": [(1600, 64), (4096, 1024)],
    "cuda": [(4096, N) for N in (1024, 4096, 16384, 256)] + [(16, 1024)],
}


class Problem(NamedTuple):
    """rnnkit.LayerNorm with weight and bias."""

    cell: str
    mode: str
    dtype: str
    M: int
    N: int

    @property
    def bound_sizes(self) -> tuple[int, int]:
        return 1, max(self.M, self.N)


def problems(device: str, choice: Choice) -> Iterator[tuple[int, Problem]]:
    """Every dtype, pass and shape."""
    for (late, dtype), (rank, mode), shape in product(
        dtypes(device, choice), enumerate(MODES[:2]), SHAPES[device]
    ):
        yield late + 2 * rank + 2, Problem("LayerNorm", mode, dtype, *shape)


def plan(device: str) -> Plan:
    return Plan(sample=5e-3) if device == "cuda" else Plan()


def build(problem: Problem, device: torch.device) -> Built:
    torch.manual_seed(0)
    kind = made(problem, device)
    twin, ours = (kit.LayerNorm(problem.N, **kind) for kit in (nn, rnnkit))
    nn.init.normal_(twin.weight, 1.0, 0.1)
    nn.init.normal_(twin.bias, 0.0, 0.1)
    input = torch.randn(problem.M, problem.N, **kind)
    return build_case(Case(problem, ours, twin, input, peers={"liger": peers.liger}))
