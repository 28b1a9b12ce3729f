"""Compiles a kernel for a GPU that need not be here, and reads the compiler's own figures."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

from rnnkit.cuda.plan import A100, H100
from rnnkit.triton.launch import Launch

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


def measure(row: dict[str, Any], launch: Launch) -> dict[str, Any]:
    """The row with its kernel's warps, registers, and stack and shared memory in bytes."""
    target = row["target"]
    triton.runtime.driver.set_active(Driver(target))
    options = dict(launch.options)
    if target.startswith("gfx"):
        # AMD's compiler does not know it: launchers leave it out there.
        options.pop("maxnreg", None)
    kernel = launch.kernel.run(*launch.arguments, grid=launch.grid, warmup=True, **options)
    row = row | {"warps": kernel.metadata.num_warps, "shared": kernel.metadata.shared}
    row |= {"limit": TARGETS[target].shared}
    if target.startswith("sm_"):
        return row | cubin_usage(kernel.asm["cubin"])
    return row | amd_usage(kernel.asm["amdgcn"])


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


def fails(row: dict[str, Any]) -> bool:
    return row["stack"] > 0 or row["shared"] > row["limit"]
