"""Where the time of one call of a recurrent layer goes: host, kernels and matrix products.

    python -m benchmarks profile lstm [--T 50] [--B 32] [--H 64] [--mode forward+backward]
        [--dtype fp32] [--device cpu|cuda] [--provider rnnkit] [--out build/profile]

Prints a table of the time by part and by name, and leaves it and a Chrome trace (chrome://tracing,
ui.perfetto.dev) in the folder. On a CPU a part is the time of its operations, without that of those
that they call; on a GPU that of its kernels there, and the host's is what the device waits.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from rnnkit.cells import CELLS
from rnnkit.cpu.library import functions

from .facts import ROOT
from .problem import DTYPES, MODES, switches
from .rows import OLD_CELLS
from .suites import rnn
from .timing import Call

CALLS = 5
CALL = "call"
# The first that is found in a name says what part it is of. The rest is the host's, or on a GPU the
# kernels'.
PARTS = {
    "matrix products": r"aten::(mm|addmm|bmm|baddbmm)$|gemm|cutlass|cublas|nvjet|^Cijk",
    "kernels": r"^rnnkit_|mkldnn_rnn|cudnn|RNN",
    "copies": r"copy|cat|clone|contiguous|[Mm]em(cpy|set)|fill|zero",
    "other operations": r"aten::|at::native",
}
NATIVE = ("rnnkit_scan", "rnnkit_scan_backward", "rnnkit_step")


class Entry(NamedTuple):
    """The time of all events of a name in a call."""

    part: str
    name: str
    calls: float
    us: float


@contextmanager
def named_kernels() -> Iterator[None]:
    """Has the profiler see the C++ kernels inside of the operations that launch them."""
    library, _ = functions()
    with ExitStack() as stack:
        for name in NATIVE if library is not None else ():
            stack.enter_context(patch.object(library, name, seen(name, getattr(library, name))))
        yield


def seen(name: str, function: Any) -> Any:
    def call(*arguments: Any) -> Any:
        with record_function(name):
            return function(*arguments)

    return call


def part_of(name: str, otherwise: str) -> str:
    return next((part for part, words in PARTS.items() if re.search(words, name)), otherwise)


def record(call: Call, on_gpu: bool) -> Any:
    """The profile of some calls, after a few that warm up."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with named_kernels():
        for _ in range(CALLS):
            call()
        with profile(activities=activities) as found:
            for _ in range(CALLS):
                with record_function(CALL):
                    call()
                    if on_gpu:
                        torch.cuda.synchronize()
    return found


def entries(found: Any, on_gpu: bool) -> list[Entry]:
    """What a call's time is made of, the longest first."""
    averages = found.key_averages()
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    made = []
    for event in averages:
        if event.device_type != kind or (on_gpu and event.key == CALL):
            continue
        us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        part = part_of(event.key, "kernels" if on_gpu else "host")
        made.append(Entry(part, event.key, event.count / CALLS, us / CALLS))
    if on_gpu:
        whole = sum(e.cpu_time_total for e in averages if e.key == CALL) / CALLS
        waits = max(0.0, whole - sum(entry.us for entry in made))
        made.append(Entry("host", "the device waits", 1, waits))
    return sorted(made, key=lambda entry: -entry.us)


def table(made: list[Entry], rows: int) -> str:
    """Each part, and below it the names that take the most."""
    total = sum(entry.us for entry in made) or 1.0
    parts: dict[str, list[Entry]] = {}
    for entry in made:
        parts.setdefault(entry.part, []).append(entry)
    lines = [f"{'part':50} {'calls':>8} {'us a call':>12} {'share':>7}"]
    for part, inside in sorted(parts.items(), key=lambda pair: -sum(e.us for e in pair[1])):
        us = sum(entry.us for entry in inside)
        lines.append(f"{part:50} {'':8} {us:12.1f} {us / total:7.1%}")
        for entry in inside[:rows]:
            name = f"  {entry.name}"[:50]
            lines.append(f"{name:50} {entry.calls:8.1f} {entry.us:12.1f} {entry.us / total:7.1%}")
    return "\n".join([*lines, f"{'all':50} {'':8} {total:12.1f} {1:7.1%}"])


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks profile", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("cell", type=lambda name: OLD_CELLS.get(name, name), choices=sorted(CELLS))
    for name, size in zip("TBH", (50, 32, 64), strict=True):
        add(f"--{name}", type=int, default=size)
    add("--mode", choices=MODES, default=MODES[0])
    add("--dtype", choices=list(DTYPES), default="fp32")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--provider", default="rnnkit", help="rnnkit, 'rnnkit BACKEND', torch.nn, torch.compile")
    add("--rows", type=int, default=8, help="names shown of each part")
    add("--out", type=Path, default=ROOT / "build" / "profile", help="folder of table and trace")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    sizes = args.T, args.B, args.H
    args.problem = rnn.Problem(args.cell, args.mode, args.dtype, *sizes)
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    on_gpu = args.device == "cuda"
    with switches(args.dtype) if on_gpu else nullcontext():
        built = rnn.build(args.problem, torch.device(args.device))
        call = built.providers.get(args.provider)
        if call is None:
            reason = built.absent.get(args.provider, f"there are {', '.join(built.providers)}")
            print(f"{args.provider} is absent: {reason}", file=sys.stderr)
            return 2
        found = record(call, on_gpu)
    head = " ".join(filter(None, map(str, (args.provider, *args.problem))))
    text = f"{head}\n{table(entries(found, on_gpu), args.rows)}"
    args.out.mkdir(parents=True, exist_ok=True)
    found.export_chrome_trace(str(args.out / "trace.json"))
    (args.out / "table.txt").write_text(text + "\n")
    print(text)
    print(f"{args.out / 'trace.json'}: the Chrome trace")
    return 0


if __name__ == "__main__":
    sys.exit(main())
