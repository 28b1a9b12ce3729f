"""Compiles a kernel for a GPU that need not be here, and reads the compiler's own figures."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget

from rnnkit.cuda.plan import A100, H100
from rnnkit.triton.launch import Launch

from . import sass
from .floors import FLOORS, SHORT

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


# Registers and threads of a multiprocessor; what it keeps of shared memory for each block.
REGISTERS, MOST_THREADS, RESERVED = 65536, 2048, 1024
# Cycles of a nanosecond, where they are known.
CLOCKS = {"sm_80": 1.41, "sm_90": 1.755}
# What multiplies matrices, in NVIDIA's machine code.
MATRIX = ("HMMA", "DMMA", "HGMMA", "UTCHMMA", "UTCQMMA")
TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), A100.shared_bytes),
    "sm_90": Target(GPUTarget("cuda", 90, 32), H100.shared_bytes),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * 1024),
}


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


def compiled(target: str, launch: Launch) -> Any:
    """The kernel of a launch as Triton compiles it for a target."""
    triton.runtime.driver.set_active(Driver(target))
    options = dict(launch.options)
    if target.startswith("gfx"):
        # AMD's compiler does not know it: launchers leave it out there.
        options.pop("maxnreg", None)
    return launch.kernel.run(*launch.arguments, grid=launch.grid, warmup=True, **options)


def measure(row: dict[str, Any], launch: Launch) -> dict[str, Any]:
    """The row with its kernel's warps, registers, and stack and shared memory in bytes."""
    target = row["target"]
    kernel = compiled(target, launch)
    row = row | {"warps": kernel.metadata.num_warps, "shared": kernel.metadata.shared}
    row |= {"limit": TARGETS[target].shared}
    if target.startswith("sm_"):
        row |= cubin_usage(kernel.asm["cubin"])
        row |= {"fit": fit(row["registers"], row["shared"], row["limit"], 32 * row["warps"])}
        row |= code_figures(row, kernel.asm["cubin"])
    else:
        row |= amd_usage(kernel.asm["amdgcn"])
    return row | (step_figures(row, launch) if row.get("form") == "resident" else {})


def fit(registers: int, shared: int, limit: int, threads: int) -> int:
    """Blocks that fit on one of NVIDIA's multiprocessors at once."""
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    return min(by_registers, (limit + RESERVED) // (shared + RESERVED), MOST_THREADS // threads)


def code_figures(row: dict[str, Any], cubin: bytes) -> dict[str, Any]:
    """matrix: instructions that multiply matrices; local: those that use local memory. Of the loop
    over time, if there is one, body: instructions, and barriers. A step takes at least issue_us,
    in which a multiprocessor can issue them.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool("nvdisasm"), file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (code,) = sass.functions(text).values()
    every = code.blocks
    found = {"matrix": sum(block.count(*MATRIX) for block in every)}
    found["local"] = sum(block.count("LDL", "STL") for block in every)
    if row.get("form") != "resident":
        return found
    _, inside = code.busiest_loop("BAR")
    body = sum(len(every[k].code) for k in inside)
    found |= {"body": body, "barriers": sum(every[k].count("BAR") for k in inside)}
    clock = CLOCKS.get(row["target"])
    return found | ({"issue_us": round(body * row["warps"] / 4 / clock / 1000, 3)} if clock else {})


def step_figures(row: dict[str, Any], launch: Launch) -> dict[str, Any]:
    """Bytes that a step of a row and group moves of tensors with a time, each once; the floor."""
    tensors = [v for v in tree_leaves(launch.arguments) if isinstance(v, torch.Tensor)]
    T, B, N, _, H = next(v.shape for v in tensors if v.dim() == 5)  # x
    timed = (v.numel() * v.itemsize for v in tensors if v.numel() >= T * B * N * H)
    found: dict[str, Any] = {"bytes": sum(timed) // (T * B * N)}
    of_floors = (row["target"], row["cell"]) == ("sm_90", "lstm") and row["dtype"] in SHORT
    floors = FLOORS.get((B, H)) if of_floors else None
    return found | ({"floor_us": floors[row["backward"]]} if floors else {})


def tool(name: str) -> str:
    """A program of NVIDIA's that triton's wheel carries."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def cubin_usage(cubin: bytes) -> dict[str, int]:
    """Registers and stack of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool("cuobjdump"), "-res-usage", file.name]
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


def spills(row: dict[str, Any]) -> bool:
    return bool(row["stack"] > 0 or row.get("local"))


def fails(row: dict[str, Any]) -> bool:
    return spills(row) or bool(row["shared"] > row["limit"])
