"""The time of one step of the recurrent kernels, in each form that they have on a GPU.

    python -m benchmarks steps [--cells lstm ...] [--dtypes bf16 ...] [--shapes B,H ...]
        [--budget SECONDS] [--out steps.jsonl]

A scan of some steps and a longer one: their difference is of steps alone, without what a call does
once. Beside it stands what the planner's model (rnnkit/cuda/plan.py) says, which these times judge.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from rnnkit.cells import CELLS, find
from rnnkit.cuda import scan as cuda
from rnnkit.cuda import stepwise
from rnnkit.cuda.plan import FORMS, Gpu, Plan, kind_of
from rnnkit.ops.gradients import products_again
from rnnkit.ops.sequence import Inputs
from rnnkit.precision import precision_of
from rnnkit.triton import scan as triton

from .facts import facts
from .plan import MODELS, microseconds
from .problem import DTYPES, shape, switches
from .rows import RESULTS, Row, append
from .timing import Timer, on_cpu, on_cuda

# How long the two scans are, and how often each is timed.
LENGTHS, TIMES = (64, 320), 3
# Cycles for which the device is kept waiting, so that the host has launched all that is timed; of
# forms with launches in every step it has not.
HEAD_START = 10_000_000
SHAPES = [(8, 64), (64, 64), (64, 128), (64, 256), (8, 512), (64, 512), (256, 512), (64, 1024)]
# How units are handed over, by what the planner calls it.
WHERE = {"L2": "by L2", "cluster": "in clusters", "block": "all of them"}


class Problem(NamedTuple):
    """A step of one cell."""

    cell: str
    dtype: str
    B: int
    H: int


def inputs_of(problem: Problem, T: int, device: torch.device) -> Inputs:
    """A scan of random numbers, of weights that keep its states in bounds."""
    cell, B, H = find(problem.cell), problem.B, problem.H

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=DTYPES[problem.dtype], device=device)

    x, w = draw(T, B, 1, cell.gates, H), draw(1, cell.gates * H, H) / math.sqrt(H)
    b = None if cell.additive else draw(1, cell.gates * H)
    p = 0.1 * draw(1, cell.rows, H) if cell.rows else None
    s0 = draw(cell.states, B, 1, H)
    return Inputs(x, w, b, s0, p, None, None, None, None, problem.cell, (False,))


def passes(backend: Any, inputs: Inputs, timer: Timer) -> tuple[float, float]:
    """Seconds of a whole scan in training, forward and backward."""
    output, cells, _ = backend.scan(inputs)
    prev, n, scale = products_again(inputs, (output, *cells))
    arriving = torch.randn_like(output), None, None

    def seconds(call: Callable[[], object]) -> float:
        call()
        return statistics.median(timer(call, 1) for _ in range(TIMES))

    if backend is not cuda:
        scan_backward = partial(backend.scan_backward, inputs, prev, n, scale, *arriving)
        return seconds(lambda: backend.scan(inputs)), seconds(scan_backward)
    keeps = cuda.keeps(inputs)
    given = *cuda.summed_up(inputs, n), scale, (output, cells), arriving, keeps
    forward = cuda.scan_and_keep if keeps else cuda.scan
    return seconds(partial(forward, inputs)), seconds(partial(cuda.backward, *given))


def times(backend: Any, problem: Problem, device: torch.device) -> Row:
    """Microseconds of a step."""
    timer = partial(on_cuda, head_start=HEAD_START) if device.type == "cuda" else on_cpu
    short, long = (passes(backend, inputs_of(problem, T, device), timer) for T in LENGTHS)
    steps = LENGTHS[1] - LENGTHS[0]
    forward, backward = (1e6 * (b - a) / steps for a, b in zip(short, long, strict=True))
    return {"forward_us": round(forward, 3), "backward_us": round(backward, 3)}


def forms(gpu: Gpu) -> Iterator[tuple[str, Gpu]]:
    """Of the CUDA kernels: a name, and the GPU as the planner is to see it."""
    for tiles, via in FORMS:
        yield f"cuda, {16 * tiles} units a block, {WHERE[via]}", gpu.only((tiles, via))
    yield "cuda, stepwise", gpu._replace(processors=0, clusters=())
    yield "cuda, as planned", gpu


def planned(problem: Problem, device: torch.device) -> list[Plan | str]:
    """Forward and backward."""
    dtype, sizes = DTYPES[problem.dtype], (problem.H, problem.B, 1)
    kind = kind_of(dtype, precision_of(dtype))
    assert kind is not None
    return [cuda.planned(problem.cell, kind, back, *sizes, device) for back in (False, True)]


def model(plans: list[Plan | str]) -> Row:
    """The same by the planner's model; a step by cuBLAS has none here."""
    named = zip(("forward_model_us", "backward_model_us"), plans, strict=True)
    return {
        name: microseconds(plan.cycles, MODELS["H100"])
        for name, plan in named
        if isinstance(plan, Plan)
    }


def rows(problem: Problem, device: torch.device) -> Iterator[Row]:
    """Of every form that the problem has."""
    gpu, sizes = cuda.gpu_of(device), (problem.H, problem.B, 1)
    by_cublas = stepwise.why_not(problem.cell, *sizes) is None
    with torch.no_grad():
        for name, seen in forms(gpu):
            with patch.object(cuda, "gpu_of", lambda device, seen=seen: seen):
                plans = planned(problem, device)
                possible = by_cublas and seen.start_cycles < math.inf
                if possible or all(isinstance(v, Plan) for v in plans):
                    found = times(cuda, problem, device) | model(plans)
                    yield problem._asdict() | {"form": name} | found
        yield problem._asdict() | {"form": "triton"} | times(triton, problem, device)


def line(row: Row) -> str:
    """The row in words."""
    words = []
    for name in ("forward", "backward"):
        expected = row.get(f"{name}_model_us")
        aside = "" if expected is None else f" (model {expected:.2f})"
        words.append(f"{name} {row[f'{name}_us']:.2f}{aside}")
    problem = f"{row['cell']} {row['dtype']} B={row['B']} H={row['H']}, {row['form']}"
    return f"{problem}: {', '.join(words)} us"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks steps", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--cells", nargs="+", default=["lstm", "gru"], choices=list(CELLS))
    add("--dtypes", nargs="+", default=["bf16", "tf32", "fp32"], choices=list(DTYPES))
    add("--shapes", nargs="+", type=shape("B,H", "two"), default=SHAPES, metavar="B,H")
    add("--budget", type=float, default=math.inf, help="seconds after which no problem is begun")
    add("--out", type=Path, default=RESULTS / "steps" / "cuda.jsonl", help="file of rows")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks steps: torch finds no CUDA device", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    end, shared = time.monotonic() + args.budget, facts(device)
    for dtype, (B, H), cell in product(args.dtypes, args.shapes, args.cells):
        if time.monotonic() > end:
            print(f"the budget of {args.budget:g} s is used up")
            break
        with switches(dtype):
            for row in rows(Problem(cell, dtype, B, H), device):
                append(args.out, [row | shared])
                print(line(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
