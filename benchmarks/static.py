"""Compiles every kernel for GPUs that need not be here, and tabulates what came out.

    python -m benchmarks.static [--operators scan ...] [--targets sm_90 ...] [--dtypes bf16 ...]

Registers, stack and shared memory are the compiler's own figures. The exit status is 1 if a kernel
uses stack or more shared memory than its target gives a block.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import Any

from rnnkit.cells import CELLS
from rnnkit.triton.cells import equations

from .static_targets import DTYPES, TARGETS, fails, measure

# Each has a module benchmarks.static_OPERATOR with launches(args): the rows that say what is
# compiled ("target", "dtype", "backward" and what else there is), each with its launch.
OPERATORS = ("scan", "layer_norm", "causal_conv1d", "wavenet")
FIGURES = ("warps", "registers", "stack", "shared", "limit")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS), choices=OPERATORS)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--cells", nargs="+", default=sorted(filter(equations, CELLS)))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--sizes", nargs="+", type=int, help="H of a scan, N of layer_norm")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    args = parser.parse_args(arguments)
    bad = count = 0
    for operator in args.operators:
        module = importlib.import_module(f"{__package__}.static_{operator}")
        for described, launch in module.launches(args):
            row = {"operator": operator} | measure(described, launch)
            count, bad = count + 1, bad + fails(row)
            print(json.dumps(row) if args.json else line(row), flush=True)
    print(f"{count} kernels, {bad} with stack or too much shared memory", file=sys.stderr)
    return int(bad > 0)


def line(row: dict[str, Any]) -> str:
    """What was compiled, and the compiler's figures."""
    known = {"operator", "target", "backward", *FIGURES}
    said = [words(k, v) for k, v in row.items() if k not in known and v not in (None, False)]
    side = "backward" if row["backward"] else "forward"
    return (
        f"{row['target']:7} {row['operator']} {side:8} {' '.join(said):40} {row['warps']:2} warps "
        f"{row['registers']:3} registers {row['stack']:5} stack "
        f"{row['shared']:6} of {row['limit']} bytes shared{' FAILS' if fails(row) else ''}"
    )


def words(name: str, value: Any) -> str:
    """A part of a description: a name, a property, or a size."""
    if isinstance(value, str):
        return value
    return name if isinstance(value, bool) else f"{name} {value}"


if __name__ == "__main__":
    sys.exit(main())
