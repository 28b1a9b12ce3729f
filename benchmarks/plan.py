"""How the CUDA kernels would share out a step on GPUs that need not be here, or why they cannot.

    python -m benchmarks plan [--cell lstm] [--gpus H100 ...] [--kinds bfloat16 ...]

One line a problem: the planner's choice (rnnkit/cuda/plan.py), how much of the weights stays in
registers, and what the planner's model says of a step, which compares plans and is no measurement.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from rnnkit.cells import CELLS
from rnnkit.cuda.plan import A100, H100, Gpu, Plan, Tile, clusters, plan
from rnnkit.native.recipes.cuda import KINDS


class Model(NamedTuple):
    """A GPU: what the planner asks of it, and its clock, if known."""

    gpu: Gpu
    ghz: float | None


MODELS = {
    "A100": Model(A100, 1.41),
    "H100": Model(H100, 1.755),
    "B200": Model(Gpu(148, 227 * 1024, clusters(148)), None),
}
SIZES = (160, 192, 256, 512, 768, 1024, 1536, 2048)
BATCHES = (1, 16, 64, 256)
PROBLEM = ("gpu", "kind", "pass", "H", "B")
CHOICE = (*Plan._fields, "held", "us")


def microseconds(cycles: float, model: Model) -> float | None:
    return round(cycles / model.ghz / 1000, 3) if model.ghz else None


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """For every GPU, kind, pass, H and B: the plan's fields, or the reason why there is none."""
    several = product(args.gpus, args.kinds, (False, True), args.sizes, args.batches)
    for name, kind, backward, H, B in several:
        row = {"gpu": name, "kind": kind, "pass": "backward" if backward else "forward"}
        row |= {"H": H, "B": B}
        found = plan(args.cell, kind, backward, H, B, 1, MODELS[name].gpu)
        if isinstance(found, str):
            yield row | {"reason": found}
            continue
        whole = Tile(args.cell, kind, found.unit_tiles, backward, found.via).whole
        held = min(1.0, whole.held / max(whole.tiles(H), 1))
        more = {"held": f"{held:.0%}", "us": microseconds(found.cycles, MODELS[name])}
        yield row | found._asdict() | more


def line(names: tuple[str, ...], row: dict[str, Any]) -> str:
    return " ".join(f"{row[name]!s:>{max(len(name), 8)}}" for name in names)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cell", default="lstm", choices=sorted(CELLS))
    parser.add_argument("--gpus", nargs="+", default=["A100", "H100"], choices=list(MODELS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="H")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="B")
    args = parser.parse_args(arguments)
    names = (*PROBLEM, *CHOICE)
    print(line(names, dict(zip(names, names, strict=True))))
    for row in rows(args):
        chosen = row.get("reason") or line(CHOICE, row)
        print(line(PROBLEM, row), chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
