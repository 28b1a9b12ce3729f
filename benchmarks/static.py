"""Compiles every recurrent kernel for GPUs that need not be here, and tabulates what came out.

    python -m benchmarks.static [--targets sm_90 ...] [--cells lstm ...] [--dtypes bf16 ...]

Registers, stack and shared memory are the compiler's own figures. The exit status is 1 if a kernel
uses stack or more shared memory than its target gives a block.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

from rnnkit.cells import CELLS, find
from rnnkit.ops.sequence import Inputs
from rnnkit.triton import fit, product
from rnnkit.triton.cells import equations
from rnnkit.triton.scan import Launch, backward_launch, forward_launch, ready

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}


class Target(NamedTuple):
    """A GPU to compile for, and the shared memory that it gives a block."""

    gpu: GPUTarget
    shared: int


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * 1024),
}


class Case(NamedTuple):
    """One kernel to compile."""

    target: str
    cell: str
    dtype: str
    H: int
    backward: bool
    features: bool


def build(case: Case, form: fit.Form | None = None) -> Launch:
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


class Driver:
    """Stands in for a GPU's driver, so that the just-in-time compiler compiles for a target."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target].gpu

    def get_current_device(self) -> str:
        return self.target  # kernels are cached by device, so each target is one

    def get_current_stream(self, device: str) -> int:
        return 0


def measure(case: Case, form: fit.Form | None = None) -> dict[str, Any]:
    """Compiles one kernel: its form, registers, stack and shared memory in bytes."""
    launch = build(case, form)
    triton.runtime.driver.set_active(Driver(case.target))
    arguments = (launch.tensors, launch.sizes, 0, *launch.constants)
    kernel = launch.kernel.run(*arguments, grid=launch.grid, warmup=True, **launch.options)
    row: dict[str, Any] = case._asdict() | {
        "form": "resident" if launch.constants[2].RESIDENT.value else "stepwise",
        "warps": launch.options["num_warps"],
    }
    return row | usage(case.target, kernel)


def measure_product(target: str, dtype: str) -> dict[str, Any]:
    """The same of the stepwise form's product."""
    triton.runtime.driver.set_active(Driver(target))

    def tensor(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=DTYPES[dtype], device="meta")

    h, w, out = tensor(64, 2, 1024), tensor(2, 4096, 1024), tensor(64, 2, 4096)
    grid, given = product.arguments(h, w, tensor(2, 4096), out, "tf32")
    kernel = product.product_kernel.run(*given, grid=grid, warmup=True)
    row = {"target": target, "cell": "product", "dtype": dtype, "H": 1024, "backward": False}
    row |= {"features": False, "form": "stepwise", "warps": kernel.metadata.num_warps}
    return row | usage(target, kernel)


def usage(target: str, kernel: Any) -> dict[str, int]:
    """Shared memory, registers and stack of a compiled kernel."""
    row = {"shared": kernel.metadata.shared, "limit": TARGETS[target].shared}
    if target.startswith("sm_"):
        return row | cubin_usage(kernel.asm["cubin"])
    return row | amd_usage(kernel.asm["amdgcn"])


def cubin_usage(cubin: bytes) -> dict[str, int]:
    """Registers and stack of a cubin, by the cuobjdump that triton's wheel carries."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return {"registers": int(found[1]), "stack": int(found[2])}


def amd_usage(assembly: str) -> dict[str, int]:
    """Registers and private memory ("scratch") of an AMD kernel, from its metadata."""
    registers = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    stack = re.search(r"\.private_segment_fixed_size:\s+(\d+)", assembly)
    assert registers and stack, "no metadata in the assembly"
    return {"registers": int(registers[1]), "stack": int(stack[1])}


def fails(row: dict[str, Any]) -> bool:
    return row["stack"] > 0 or row["shared"] > row["limit"]


def largest(case: Case) -> int:
    """The largest H up to 1024, in powers of two, whose weights stay resident."""
    sizes = [H for H in (16, 32, 64, 128, 256, 512, 1024) if resident(case._replace(H=H))]
    return max(sizes, default=0)


def resident(case: Case) -> bool:
    return bool(build(case).constants[2].RESIDENT.value)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """For every target, cell, dtype and pass: the smallest and largest resident H, and stepwise."""
    for target in args.targets:
        for cell in args.cells:
            for dtype in args.dtypes:
                for backward in (False, True):
                    for features in (False, True):
                        case = Case(target, cell, dtype, 16, backward, features)
                        top = largest(case)
                        for H in sorted(set(args.sizes or (16, 64, top, 1024)) - {0}):
                            yield case._replace(H=H)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--cells", nargs="+", default=sorted(filter(equations, CELLS)))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--sizes", nargs="+", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    args = parser.parse_args(arguments)
    bad = count = 0
    products = [(t, v) for t in args.targets for v in args.dtypes if v != "fp64"]
    rows = (measure_product(*kind) for kind in products)
    for row in chain(rows, map(measure, cases(args))):
        count, bad = count + 1, bad + fails(row)
        print(json.dumps(row) if args.json else line(row), flush=True)
    print(f"{count} kernels, {bad} with stack or too much shared memory", file=sys.stderr)
    return int(bad > 0)


def line(row: dict[str, Any]) -> str:
    side = "backward" if row["backward"] else "forward"
    extra = "all features" if row["features"] else "plain"
    return (
        f"{row['target']:7} {row['cell']:9} {row['dtype']} H {row['H']:4} {side:8} {extra:16} "
        f"{row['form']:8} {row['warps']} warps {row['registers']:3} registers "
        f"{row['stack']:5} stack {row['shared']:6} of {row['limit']} bytes shared"
        f"{' FAILS' if fails(row) else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
