"""Compiles every kernel for GPUs that need not be here, and tabulates what came out.

    python -m benchmarks static [--operators scan ...] [--targets sm_90 ...] [--dtypes bf16 ...]

Registers, stack and shared memory are the compiler's own figures; the kernels of csrc/cuda need
nvcc, and are skipped without it. The exit status is 1 if a kernel uses stack or more shared memory
than its target gives a block, 2 if nothing was compiled.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from rnnkit.cells import CELLS
from rnnkit.triton.cells import equations

from .static_targets import DTYPES, TARGETS, fails, measure, spills

# Each has a module benchmarks.static_OPERATOR. Kernels in Triton have launches(args): what is
# compiled ("target", "dtype", "backward" and what else there is), each with its launch. Others have
# rows(args): the same with FIGURES, and what else there is to say.
OPERATORS = ("scan", "layer_norm", "causal_conv1d", "wavenet", "cuda")
FIGURES = ("warps", "registers", "stack", "shared", "limit")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS), choices=OPERATORS)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--cells", nargs="+", default=sorted(filter(equations, CELLS)))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--sizes", nargs="+", type=int, help="H of a scan or cuda, N of layer_norm")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    args = parser.parse_args(arguments)
    bad = spilled = count = 0
    for operator in args.operators:
        for row in rows(operator, args):
            count, bad, spilled = count + 1, bad + fails(row), spilled + spills(row)
            print(json.dumps(row) if args.json else line(row), flush=True)
    large = f"{bad - spilled} more with too much shared memory"
    print(f"{count} kernels, {spilled} that spill, {large}", file=sys.stderr)
    return int(bad > 0) if count else 2


def rows(operator: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compiles the kernels of one operator."""
    module = importlib.import_module(f"{__package__}.static_{operator}")
    if hasattr(module, "rows"):
        yield from module.rows(args)
    else:
        for described, launch in module.launches(args):
            yield {"operator": operator} | measure(described, launch)


def line(row: dict[str, Any]) -> str:
    """What was compiled, the compiler's figures, and what a module adds to them."""
    names = list(row)
    places = [names.index(name) for name in FIGURES]
    said = said_of(row, names[: min(places)])
    more = said_of(row, names[max(places) + 1 :])
    side = "backward" if row["backward"] else "forward"
    return (
        f"{row['target']:7} {row['operator']} {side:8} {said:40} {row['warps']:2} warps "
        f"{row['registers']:3} registers {row['stack']:5} stack "
        f"{row['shared']:6} of {row['limit']} bytes shared{' FAILS' if fails(row) else ''} {more}"
    ).rstrip()


def said_of(row: dict[str, Any], names: list[str]) -> str:
    known = {"operator", "target", "backward"}
    return " ".join(
        words(k, row[k]) for k in names if k not in known and row[k] not in (None, False)
    )


def words(name: str, value: Any) -> str:
    """A part of a description: a name, a property, or a size."""
    if isinstance(value, str):
        return value
    return name if isinstance(value, bool) else f"{name} {value}"


if __name__ == "__main__":
    sys.exit(main())
