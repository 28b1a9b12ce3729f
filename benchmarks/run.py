"""Times layers against every peer, each only after its results have been shown right.

    python -m benchmarks run [--device cpu|cuda] [--suite rnn|norm|conv|forecasting|all]
        [--cells lstm ...] [--modes inference ...] [--dtypes fp32 ...] [--shapes T,B,H ...]
        [--providers rnnkit ...] [--budget SECONDS] [--repeats N] [--base REV] [--out results.jsonl]

Rows are appended to the file as they are measured, the most telling problem first; what the file
has of this commit and machine already is not measured again (--repeats asks for several times). The
exit status is 1 if a provider failed, or one of ours is slower than at REV.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from rnnkit.dispatch import recording

from .base import Base
from .facts import facts, now
from .problem import DTYPES, MODES, Built, Choice, LayerCall, Problem, shape, switches
from .progress import Progress
from .rows import RESULTS, SAME, Row, append, beaten, key, marked, read, said, slower
from .suites import SUITES, load, ordered, suite_of
from .table import failures, table
from .timing import Call, Result, measure, on_cpu, on_cuda


def peak_mib(call: Call) -> float:
    """The most memory on the GPU that a call takes beside what was there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def saved_mib(call: Call) -> float | None:
    """The memory that a call keeps for backward, its input and parameters apart."""
    if not isinstance(call, LayerCall) or call.mode == "inference":
        return None
    given = {v.untyped_storage().data_ptr() for v in call.leaves.values()}
    kept: dict[int, int] = {}

    def pack(v: torch.Tensor) -> torch.Tensor:
        storage = v.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return v

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        call()
    return sum(kept.values()) / 2**20


def ran_on(call: Call) -> str | None:
    """The backends that a call of one of our layers ran on."""
    with recording() as decisions:
        call()
    return "+".join(dict.fromkeys(decision.backend for decision in decisions)) or None


def row_of(problem: Problem, result: Result, call: Call, bound: float, baseline: str) -> Row:
    """What is stored about one provider of one problem."""
    times = ("p20_ms", "p50_ms", "p80_ms", "us_per_step", "ratio", "ratios", "saved_mib")
    row: Row = {"suite": suite_of(problem)} | problem._asdict()
    row |= {"provider": result.provider, "baseline": baseline, **dict.fromkeys(times)}
    row |= {"error": result.error, "error_of": result.where, "error_bound": bound}
    row |= {"first_call_s": result.first_call_s, "failure": result.failure}
    if result.failure is None:
        p20, p50, p80 = result.percentiles()
        row |= {"p20_ms": p20 * 1e3, "p50_ms": p50 * 1e3, "p80_ms": p80 * 1e3}
        row |= {"us_per_step": p50 * 1e6 / row["T"]} if row["suite"] == "rnn" else {}
        row |= {"ratio": result.ratio, "ratios": [float(f"{v:.4g}") for v in result.ratios]}
        ours = result.provider.startswith("rnnkit")
        row |= {"backend": ran_on(call) if ours else None, "saved_mib": saved_mib(call)}
        row |= {"peak_mib": peak_mib(call)} if torch.cuda.is_initialized() else {}
    # Other work on the machine shows here: the number of running processes, ours included.
    row |= {"load": os.getloadavg()[0], "allow_tf32_cudnn": torch.backends.cudnn.allow_tf32}
    row |= {"allow_tf32_matmul": torch.backends.cuda.matmul.allow_tf32}
    return {name: rounded(value) for name, value in row.items()}


def rounded(value: Any) -> Any:
    """A number with the digits that mean something; JSON has no infinity."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


def run(
    problem: Problem,
    device: torch.device,
    base: Base | None = None,
    asked: list[str] | None = None,
) -> list[Row]:
    """The rows of one problem; the first also says which providers are absent, and why.

    asked: the providers to measure, beside the baseline; None is all.
    """
    on_gpu, suite = device.type == "cuda", load(suite_of(problem))
    with switches(problem.dtype) if on_gpu else nullcontext():
        built = suite.build(problem, device)
        if asked is not None:
            keep_only(asked, built)
        if base is not None:
            base.add(problem, device, built)
        timer, plan = on_cuda if on_gpu else on_cpu, suite.plan(device.type)
        rule = built.providers, built.expected, built.bound, timer, plan, built.checks
        found, baseline = measure(*rule), next(iter(built.providers))
        calls = built.providers
        rows = [row_of(problem, v, calls[v.provider], built.bound, baseline) for v in found]
    rows[0]["absent"] = built.absent
    return rows if asked is None else [row | {"asked": asked} for row in rows]


def keep_only(asked: list[str], built: Built) -> None:
    """Drops all others but the baseline."""
    baseline = next(iter(built.providers))
    for name in [v for v in built.providers if v != baseline and v not in asked]:
        del built.providers[name]
        built.checks.pop(name, None)


def waiting(
    problems: list[Problem],
    stored: list[Row],
    shared: Row,
    times: int,
    asked: list[str] | None = None,
) -> list[Problem]:
    """The problems that have been measured less often in this place, in turns; asked: as of `run`,
    in order.
    """
    done: dict[tuple[Any, ...], set[str]] = {}
    for row in stored:
        if row.get("asked") == asked and all(row.get(name) == shared[name] for name in SAME):
            done.setdefault(key(row), set()).add(row["date"])
    dirty = shared["commit"] is None or shared["commit"].endswith("-dirty")
    counts = {p: 0 if dirty else len(done.get(key(described(p)), ())) for p in problems}
    return [p for turn in range(times) for p in problems if counts[p] <= turn]


def described(problem: Problem) -> Row:
    return {"suite": suite_of(problem)} | problem._asdict()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks run", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--suite", choices=(*SUITES, "all"), default="all")
    add("--cells", nargs="+", help="registered cells, forecasting models, or layers")
    add("--modes", nargs="+", choices=MODES)
    add("--dtypes", nargs="+", choices=list(DTYPES))
    add(
        "--shapes",
        nargs="+",
        type=shape("T,B,H", "three"),
        metavar="T,B,H",
        help="of the suite rnn",
    )
    add("--providers", nargs="+", help="beside the baseline, only these")
    add("--budget", type=float, default=math.inf, help="seconds after which no row is started")
    add("--repeats", type=int, default=1, help="times that each problem is to be stored")
    add("--base", metavar="REV", help="a revision to measure beside this one")
    add("--out", type=Path, help="file of rows (default benchmarks/results/DEVICE.jsonl)")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    if args.device == "cpu" and "tf32" in (args.dtypes or ()):
        parser.error("tf32 is a GPU's arithmetic: it needs --device cuda")
    names = list(SUITES) if args.suite == "all" else [args.suite]
    args.out = args.out or RESULTS / f"{file_name(args.device)}.jsonl"
    args.problems = ordered(names, args.device, Choice(*chosen(args)))
    if not args.problems:
        asked = " ".join(map(str, args.cells or args.modes or args.dtypes or ()))
        parser.error(f"no problem of the suite {args.suite} has {asked}")
    return args


def chosen(args: argparse.Namespace) -> tuple[Any, ...]:
    return args.cells, args.modes, args.dtypes, args.shapes


def file_name(device: str) -> str:
    """cpu, or the GPU's name."""
    name = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    return re.sub(r"\W+", "-", name.lower())


def main(argv: list[str] | None = None) -> int:
    start, args = time.monotonic(), parse(argv)
    device = torch.device(args.device)
    shared, stored = facts(device), read(args.out)
    asked = args.providers and sorted(args.providers)
    rows: list[Row] = []
    left = waiting(args.problems, stored, shared, args.repeats, asked)
    with ExitStack() as stack:
        base = stack.enter_context(Base(args.base)) if args.base else None
        progress = stack.enter_context(Progress(len(left), args.budget, start))
        while left and time.monotonic() - start < args.budget:
            problem = left.pop(0)
            progress.step(said(described(problem)))
            # Runs of one problem are told apart by when they began.
            more = shared | {"date": now()}
            found = [row | more for row in run(problem, device, base, asked)]
            found = [marked(row, [*stored, *rows]) for row in found]
            append(args.out, found)
            rows += found
    return summary(rows, stored, left, args)


def summary(rows: list[Row], stored: list[Row], left: list[Problem], args: Any) -> int:
    """Prints what there is to say, and returns the exit status."""
    absent = [row.get("absent") or {} for row in rows]
    missing = {name: why for reasons in absent for name, why in reasons.items()}
    than_base, wrong = beaten(rows), failures(rows)
    known = missing.keys() | {row["provider"] for row in rows}
    unknown = [v for v in args.providers or () if rows and v not in known]
    wrong += [f"no problem has a provider {name}" for name in unknown]
    lines = [table(rows), *(f"absent: {name}: {reason}" for name, reason in missing.items())]
    lines += [f"failed: {failure}" for failure in wrong]
    lines += [f"slower: {line}" for line in (*than_base, *slower(rows, stored))]
    if left:
        lines.append(f"left out, the budget of {args.budget:g} s used up: {len(left)}")
        lines += [f"  {said(described(problem))}" for problem in left]
    print("\n".join(lines))
    return int(bool(than_base or wrong))
