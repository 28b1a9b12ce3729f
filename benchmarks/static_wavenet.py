"""The kernels of WaveNet's blocks that `benchmarks static` compiles, and the bytes that they move.

Bytes a step of one row of the batch: of a kernel, what it reads and writes of tensors that have a
time, each once; of torch's own operations on the same block, every operation's inputs and results.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rnnkit.ops.blocks import Blocks, allocate
from rnnkit.torch_kernels.wavenet import wavenet
from rnnkit.triton import wavenet as kernels
from rnnkit.triton.launch import Launch

from .static_causal_conv1d import nested
from .static_targets import DTYPES

SIZES = (16, 20, 32, 64, 100, 128, 256)
N, L, K, DILATION = 4, 1000, 2, 4


def stack(C: int, dtype: torch.dtype, condition: int, device: str = "meta") -> Blocks:
    """One block, whose condition has so many steps; 0 for none."""

    def tensor(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    w, b, r, rb = tensor(1, 2 * C, C, K), tensor(1, 2 * C), tensor(1, C, C), tensor(1, C)
    more = tensor(N, 2 * C, condition) if condition else None
    return Blocks(tensor(N, C, L), w, b, r, rb, more, (DILATION,))


def build(C: int, dtype: torch.dtype, condition: int, amd: bool) -> dict[str, Launch]:
    """The launches of one block that only a block has; none where it runs as two convolutions."""
    blocks = kernels.ready(stack(C, dtype, condition))
    if not kernels.fused(blocks, amd):
        return {}
    (xs, z), x = allocate(blocks), blocks.x
    da = x.new_empty(N, 2 * C, L)
    return {
        "block": kernels.forward(blocks, 0, x, z, xs[0]),
        "last block": kernels.forward(blocks, 0, x, z, None),
        "sums": kernels.backward(blocks, 0, x, da, z, xs[0]),
    }


def moved(launch: Launch) -> int:
    """Bytes a step of the tensors that have a time."""
    tensors = [v for v in tree_leaves(launch.arguments) if isinstance(v, torch.Tensor)]
    timed = [v for v in tensors if v.dim() == 3 and v.shape[2] == L]
    return sum(v.numel() * v.itemsize for v in timed) // (N * L)


class Counter(TorchDispatchMode):
    """Counts the bytes of what operations read and write; views move nothing."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            for v in tree_leaves((args, kwargs, out)):
                if isinstance(v, torch.Tensor) and v.dim() == 3 and v.shape[2] >= L:
                    self.bytes += v.numel() * v.itemsize
        return out


@lru_cache
def by_torch(C: int, dtype: torch.dtype, condition: int) -> int:
    """What torch's operations move for the block, forward."""
    blocks = stack(C, dtype, condition)
    with Counter() as counter:
        wavenet(*blocks)  # type: ignore[arg-type]
    return counter.bytes // (N * L)


def launches(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Launch]]:
    """For every target, dtype and size: a block forward and backward, without a condition and with
    one of every step.
    """
    kinds = list(product(args.sizes or SIZES, (0, L)))
    for (target, dtype), rounding, (C, condition) in nested(args, kinds):
        amd = target.startswith("gfx")
        for name, launch in build(C, DTYPES[dtype], condition, amd).items():
            row = {"target": target, "dtype": dtype, "rounding": rounding, "C": C}
            row |= {"condition": condition > 0}
            row |= {"backward": name == "sums", "form": name, "bytes": moved(launch)}
            if name == "block":
                row["torch's bytes"] = by_torch(C, DTYPES[dtype], condition)
            yield row, launch
