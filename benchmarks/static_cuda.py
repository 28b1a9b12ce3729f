"""The kernels of csrc/cuda that `benchmarks static` compiles, and what a step of theirs takes.

fit: blocks of a multiprocessor. Of the loop over time, body: all instructions; local: those that
use local memory; issued: those that a warp with units runs for a step of one chunk where no
optional argument is given, all_issued: those of all warps; barriers, products: how many of a
warp's are such. A step takes at least issue_us, which is what a multiprocessor needs to issue them
for all chunks; plan_us by the planner's model; floor_us if the kernel is a good one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

from rnnkit.cells import find
from rnnkit.cuda.plan import Plan, Tile, kind_of
from rnnkit.cuda.weights import WARPS
from rnnkit.native.recipes import NoLibrary
from rnnkit.native.recipes.cuda import KINDS

from . import nvcc
from .floors import FLOORS
from .plan import MODELS, microseconds
from .static_targets import DTYPES, TARGETS, fit
from .time_loop import Loop

Row = dict[str, Any]
GPUS = {"sm_80": "A100", "sm_90": "H100", "sm_100": "B200"}
# (B, H).
SHAPES = [(64, 64), (64, 128), (64, 256), (64, 512), (64, 1024), (256, 512)]
SHORT = ("half", "bfloat16")


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """For every target and kind: every kernel at every shape."""
    try:
        known = nvcc.targets()
    except NoLibrary as reason:
        print(f"cuda: skipped, {reason}", file=sys.stderr)
        return
    targets = [name for name in args.targets if name in GPUS]
    if unknown := [name for name in targets if name not in known]:
        print(f"cuda: skipped {', '.join(unknown)}, which nvcc does not know", file=sys.stderr)
    cases = [case for case in product(targets, kinds_of(args.dtypes)) if case[0] in known]
    cells = sorted({find(name).kernel or name for name in args.cells} & set(nvcc.listed()))
    if not cells:
        print(f"cuda: skipped, it has none of {' '.join(args.cells)}", file=sys.stderr)
        return
    shapes = [(64, H) for H in args.sizes] if args.sizes else SHAPES
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(lambda case: nvcc.compile_kernels(case[0], case[1], cells), cases)
        for (target, kind), kernels in zip(cases, compiled, strict=True):
            clusters = bool(MODELS[GPUS[target]].gpu.clusters)
            for kernel in kernels:
                # Compiled for GPUs without clusters, their kernels are empty.
                if clusters or kernel.via != "cluster":
                    yield from rows_of(kernel, target, kind, shapes)


def kinds_of(dtypes: list[str]) -> list[str]:
    """The kinds of product that these dtypes may be multiplied by."""
    several = product(dtypes, ("tf32", "ieee"))
    found = {kind_of(DTYPES[dtype], precision) for dtype, precision in several}
    return [kind for kind in KINDS if kind in found]


def rows_of(
    kernel: nvcc.Kernel, target: str, kind: str, shapes: list[tuple[int, int]]
) -> Iterator[Row]:
    """One kernel at every shape; where it has no plan, the reason."""
    tile = Tile(kernel.cell, kind, *kernel[1:4])
    loop, figures = Loop(kernel, tile), kernel.figures
    for B, H in shapes:
        chosen = tile.plan(H, B, 1, MODELS[GPUS[target]].gpu)
        shared = figures["shared"] + getattr(chosen, "shared_bytes", 0)
        row: Row = {"operator": "cuda", "target": target, "cell": kernel.cell, "kind": kind}
        row |= {"unit_tiles": kernel.unit_tiles, "via": kernel.via, "B": B, "H": H}
        row |= {"backward": kernel.backward}
        row |= {"warps": WARPS, "registers": figures["registers"], "stack": figures["stack"]}
        row |= {"shared": shared, "limit": TARGETS[target].shared}
        row |= {"fit": fit(figures["registers"], shared, TARGETS[target].shared, 32 * WARPS)}
        row |= {"spilled": figures["stores"] + figures["loads"], **loop.figures(H)}
        yield row | (times(row, chosen) if isinstance(chosen, Plan) else {"reason": chosen})


def times(row: Row, chosen: Plan) -> Row:
    """What a step takes by its instructions and by the planner, and what it could take."""
    model = MODELS[GPUS[row["target"]]]
    # A multiprocessor has four schedulers, each of which issues one instruction a cycle.
    issuing = chosen.waves * chosen.chunks * row["all_issued"] / 4
    found = {
        "chunks": chosen.chunks,
        "issue_us": microseconds(issuing, model),
        "plan_us": microseconds(chosen.cycles, model),
    }
    of_floors = (row["target"], row["cell"]) == ("sm_90", "lstm") and row["kind"] in SHORT
    floors = FLOORS.get((row["B"], row["H"])) if of_floors else None
    return found | ({"floor_us": floors[row["backward"]]} if floors else {})
