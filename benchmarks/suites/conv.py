"""Dilated causal convolutions of C to C channels, and WaveNet's residual blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rnnkit

from .. import peers
from ..problem import MODES, Built, Case, Choice, build_case
from ..timing import Plan
from . import dtypes, made

# B, T, C, K, dilation.
SHAPES = {
    "cpu": [(32, 50, 20, 2, 4), (8, 1024, 64, 2, 8)],
    "cuda": [
        (16, 16384, 64, 2, 8),
        (16, 16384, 128, 2, 512),
        (16, 16384, 256, 3, 1),
        (16, 16384, 20, 2, 4),
        (16, 16384, 512, 2, 8),
    ],
}
# In a row, as of a block's product, gate, and second product, and of its gradient.
ROUNDINGS = 4


class Problem(NamedTuple):
    """cell: CausalConv1d, depthwise CausalConv1d, or WaveNetBlock."""

    cell: str
    mode: str
    dtype: str
    B: int
    T: int
    C: int
    K: int
    dilation: int

    @property
    def bound_sizes(self) -> tuple[int, int]:
        return ROUNDINGS, max(self.B * self.T, 2 * self.C * self.K)


class Padded(nn.Conv1d):
    """What a causal convolution takes with torch.nn alone."""

    def forward(self, input: Tensor) -> Tensor:
        past = (self.kernel_size[0] - 1) * self.dilation[0]
        return super().forward(F.pad(input, (past, 0)))


class Block(nn.Module):
    """WaveNet's residual block of torch.nn's layers: what goes on, and skip."""

    def __init__(self, C: int, K: int, dilation: int, **kind: Any) -> None:
        super().__init__()
        self.conv = Padded(C, 2 * C, K, dilation=dilation, **kind)
        self.residual, self.skip = nn.Conv1d(C, C, 1, **kind), nn.Conv1d(C, C, 1, **kind)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        f, g = self.conv(input).chunk(2, 1)
        z = torch.tanh(f) * torch.sigmoid(g)
        return input + self.residual(z), self.skip(z)


def problems(device: str, choice: Choice) -> Iterator[tuple[int, Problem]]:
    """Every dtype, pass and shape, of each."""
    several = product(dtypes(device, choice), enumerate(MODES[:2]), SHAPES[device])
    for (late, dtype), (rank, mode), (B, T, C, K, dilation) in several:
        place = late + 2 * rank + 2
        for cell in ("CausalConv1d", "WaveNetBlock"):
            yield place, Problem(cell, mode, dtype, B, T, C, K, dilation)
        yield place + 1, Problem("depthwise CausalConv1d", mode, dtype, B, T, C, 4, 1)


def plan(device: str) -> Plan:
    return Plan(sample=5e-3) if device == "cuda" else Plan()


def build(problem: Problem, device: torch.device) -> Built:
    torch.manual_seed(0)
    C, K, dilation, kind = problem.C, problem.K, problem.dilation, made(problem, device)
    input = torch.randn(problem.B, C, problem.T, **kind)
    twin: nn.Module
    ours: nn.Module
    if problem.cell == "WaveNetBlock":
        twin = Block(C, K, dilation, **kind)
        ours = rnnkit.WaveNetBlock(C, K, dilation, **kind)
        return build_case(Case(problem, ours, twin, input, call_block))
    groups = C if problem.cell.startswith("depthwise") else 1
    options = {"dilation": dilation, "groups": groups} | kind
    twin, ours = Padded(C, C, K, **options), rnnkit.CausalConv1d(C, C, K, **options)
    more = {"causal_conv1d": peers.causal_conv1d}
    return build_case(Case(problem, ours, twin, input, peers=more))


def call_block(block: nn.Module, input: Tensor) -> Any:
    """Both results side by side, so that gradients come from both."""
    return torch.cat(block(input), 1)
