"""Times whole recurrent layers against torch.nn's: the input's projection included, I = H.

    python -m benchmarks.rnn [--device cpu|cuda] [--cells LSTM ...] [--dtypes fp32 ...]
        [--shapes T,B,H ...] [--modes inference ...] [--budget SECONDS] [--out results.jsonl]

One layer, one direction. Rows are appended to the file as they are measured, the most telling
first. The exit status is 1 if a provider failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from rnnkit.dispatch import recording

from .facts import facts
from .problem import CELLS, DTYPES, MODES, Problem, build, switches
from .table import failures, table
from .timing import Call, Plan, Result, measure, on_cpu, on_cuda

Row = dict[str, Any]

# What is measured by default, the most telling first.
DEFAULTS: dict[str, dict[str, list[str]]] = {
    "cpu": {"dtypes": ["fp32"], "shapes": ["50,32,20", "50,32,64", "100,32,128", "100,64,256"]},
    "cuda": {
        "dtypes": ["bf16", "tf32", "fp16", "fp32"],
        "shapes": ["256,64,64", "256,16,128", "256,64,256", "256,64,20"],
    },
}
# A sample on a GPU begins with an idle device; it is long enough for that start not to matter.
PLANS = {"cpu": Plan(), "cuda": Plan(sample=5e-3)}


def peak_mib(call: Call) -> float:
    """The most memory on the GPU that a call takes beside what was there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def ran_on(call: Call) -> str | None:
    """The backends that a call of one of our layers ran on."""
    with recording() as decisions:
        call()
    return "+".join(dict.fromkeys(decision.backend for decision in decisions)) or None


def row_of(problem: Problem, result: Result, call: Call, device: torch.device) -> Row:
    """What is stored about one provider of one problem."""
    row: Row = problem._asdict() | {
        "provider": result.provider,
        **dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "us_per_step", "ratio", "ratios")),
        "error": result.error,
        "error_of": result.where,
        "error_bound": problem.bound,
        "first_call_s": result.first_call_s,
        "failure": result.failure,
    }
    if result.failure is None:
        p20, p50, p80 = result.percentiles()
        row |= {"p20_ms": p20 * 1e3, "p50_ms": p50 * 1e3, "p80_ms": p80 * 1e3}
        row |= {"us_per_step": p50 * 1e6 / problem.T, "ratio": result.ratio}
        row |= {"ratios": [float(f"{v:.4g}") for v in result.ratios], "backend": ran_on(call)}
        row |= {"peak_mib": peak_mib(call)} if device.type == "cuda" else {}
    # Other work on the machine shows here: the number of running processes, ours included.
    row |= {"load": os.getloadavg()[0], "allow_tf32_cudnn": torch.backends.cudnn.allow_tf32}
    row |= {"allow_tf32_matmul": torch.backends.cuda.matmul.allow_tf32}
    return {key: rounded(value) for key, value in row.items()}


def rounded(value: Any) -> Any:
    """A number with the digits that mean something; JSON has no infinity."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


def run(problem: Problem, device: torch.device) -> tuple[list[Row], dict[str, str]]:
    """The rows of one problem, and the providers that are absent and why."""
    timer = on_cuda if device.type == "cuda" else on_cpu
    with switches(problem.dtype) if device.type == "cuda" else nullcontext():
        calls, expected, absent = build(problem, device)
        found = measure(calls, expected, problem.bound, timer, PLANS[device.type])
        return [row_of(problem, v, calls[v.provider], device) for v in found], absent


def ordered(args: argparse.Namespace) -> list[Problem]:
    """All problems: what comes early among both the modes and the dtypes comes first."""
    found = [
        (rank + late, Problem(cell, mode, dtype, *shape))
        for (rank, mode), (late, dtype), shape, cell in itertools.product(
            enumerate(args.modes), enumerate(args.dtypes), args.shapes, args.cells
        )
    ]
    return [problem for _, problem in sorted(found, key=lambda pair: pair[0])]


def shape(text: str) -> tuple[int, int, int]:
    """T,B,H."""
    try:
        T, B, H = map(int, text.split(","))
    except ValueError:
        T = B = H = 0
    if min(T, B, H) < 1:
        raise argparse.ArgumentTypeError(f"expected T,B,H, three positive numbers, got {text!r}")
    return T, B, H


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rnn", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--device", choices=list(DEFAULTS), default="cpu")
    add("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    add("--dtypes", nargs="+", choices=list(DTYPES))
    add("--shapes", nargs="+", type=shape, metavar="T,B,H")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--budget", type=float, default=math.inf, help="seconds after which no row is started")
    add("--out", type=Path, help="file to append the rows to, one JSON object a line")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    args.dtypes = args.dtypes or DEFAULTS[args.device]["dtypes"]
    if args.device == "cpu" and "tf32" in args.dtypes:
        parser.error("tf32 is a GPU's arithmetic: it needs --device cuda")
    args.shapes = args.shapes or [shape(text) for text in DEFAULTS[args.device]["shapes"]]
    return args


def main(argv: list[str] | None = None) -> int:
    start, args = time.monotonic(), parse(argv)
    device, waiting = torch.device(args.device), ordered(args)
    shared, total = facts(device), len(waiting)
    rows: list[Row] = []
    missing: dict[str, str] = {}
    while waiting and time.monotonic() - start < args.budget:
        problem = waiting.pop(0)
        print(f"{total - len(waiting)} of {total}: {problem}", file=sys.stderr, flush=True)
        found, absent = run(problem, device)
        found = [row | shared for row in found]
        rows, missing = rows + found, missing | absent
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with args.out.open("a") as file:
                file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in found)
    lines = [table(rows), *(f"absent: {name}: {reason}" for name, reason in missing.items())]
    lines += [f"failed: {failure}" for failure in failures(rows)]
    if waiting:
        lines += [f"left out, the budget of {args.budget:g} s used up: {len(waiting)} of {total}"]
        lines += [f"  {problem}" for problem in waiting]
    print("\n".join(lines))
    return int(any(row["failure"] is not None for row in rows))


if __name__ == "__main__":
    sys.exit(main())
