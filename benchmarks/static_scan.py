"""The recurrent kernels that `benchmarks.static` compiles."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from rnnkit.cells import find
from rnnkit.ops.sequence import Inputs
from rnnkit.triton import fit, product
from rnnkit.triton.arguments import Launch as Scan
from rnnkit.triton.launch import Launch
from rnnkit.triton.scan import backward_launch, forward_launch, ready

from .static_targets import DTYPES, TARGETS


class Case(NamedTuple):
    """One kernel to compile."""

    target: str
    cell: str
    dtype: str
    H: int
    backward: bool
    features: bool


def build(case: Case, form: fit.Form | None = None) -> Scan:
    """The launch that dispatch would make for this case, on tensors without memory."""
    dtype, T, B, N = DTYPES[case.dtype], 64, 64, 2
    cell = find(case.cell)

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    G, S, H = cell.gates, cell.states, case.H
    of_sum = cell.norm is not None and cell.norm.of_sum
    inputs = Inputs(
        x=tensor(T, B, N, G, H),
        w=tensor(N, G * H, H),
        b=None if cell.additive and not of_sum else tensor(N, G * H),
        s0=tensor(S, B, N, H),
        p=tensor(N, cell.rows, H) if cell.rows else None,
        m=tensor(T, B, N, S, H, dtype=torch.bool) if case.features else None,
        d=tensor(B, N, H) if case.features else None,
        lengths=tensor(B, N, dtype=torch.int64) if case.features else None,
        resets=tensor(T, B, N, dtype=torch.bool) if case.features else None,
        cell=case.cell,
        reverse=(False, True),
    )
    inputs, limit = ready(inputs), TARGETS[case.target].shared
    form = form or fit.choose_form(inputs, case.backward, limit, case.target.startswith("gfx"))
    states, cells, x = tensor(T, B, N, H), tensor(S - 1, T, B, N, H), inputs.x
    if not case.backward:
        last = tensor(S, B, N, H)
        return forward_launch(inputs, form, tensor(S, B, N, H), states, cells, last)
    arriving = {"doutput": states, "dcells": cells if S > 1 else None, "dlast": None}
    dr = None if cell.additive else tensor(*x.shape)
    prev = tensor(S, T, B, N, H)
    scale = tensor(T, B, N, G, 1, dtype=torch.float32) if cell.norm else None
    r, dx = tensor(*x.shape), tensor(*x.shape)
    return backward_launch(inputs, form, prev, r, scale, arriving, dx, dr)


def described(case: Case, form: fit.Form | None = None) -> tuple[dict[str, Any], Launch]:
    """The case as a row, and its launch."""
    scan = build(case, form)
    arguments = (scan.tensors, scan.sizes, 0, *scan.constants)
    row = case._asdict() | {"form": form_of(scan)}
    return row, Launch(scan.kernel, scan.grid, arguments, scan.options)


def form_of(scan: Scan) -> str:
    return "resident" if scan.constants[2].RESIDENT.value else "stepwise"


def product_launch(target: str, dtype: str) -> tuple[dict[str, Any], Launch]:
    """The same of the stepwise form's product."""

    def tensor(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=DTYPES[dtype], device="meta")

    h, w, out = tensor(64, 2, 1024), tensor(2, 4096, 1024), tensor(64, 2, 4096)
    grid, given = product.arguments(h, w, tensor(2, 4096), out, "tf32")
    row = Case(target, "product", dtype, 1024, False, False)._asdict() | {"form": "stepwise"}
    return row, Launch(product.product_kernel, grid, given, {})


def largest(case: Case) -> int:
    """The largest H up to 1024, in powers of two, whose weights stay resident."""
    sizes = (16, 32, 64, 128, 256, 512, 1024)
    return max((H for H in sizes if form_of(build(case._replace(H=H))) == "resident"), default=0)


def launches(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Launch]]:
    """For every target, cell, dtype and pass: the smallest and largest resident H, and stepwise."""
    for target in args.targets:
        for dtype in args.dtypes:
            if dtype != "fp64":
                yield product_launch(target, dtype)
        for cell in args.cells:
            for dtype in args.dtypes:
                for backward in (False, True):
                    for features in (False, True):
                        case = Case(target, cell, dtype, 16, backward, features)
                        top = largest(case)
                        for H in sorted(set(args.sizes or (16, 64, top, 1024)) - {0}):
                            yield described(case._replace(H=H))
