"""What fits on chip: the form in which a problem's kernels are launched."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

from ..cells import Cell
from ..ops.sequence import Inputs

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")
AMD = torch.version.hip is not None


# Rows of a resident program: the least that a matrix instruction takes.
ROWS = 16
# The depth to which the compiler pipelines a loop's loads; it buffers one step less.
STAGES = 3


class Form(NamedTuple):
    """How a kernel is launched.

    resident: all weights stay on chip for the whole sequence; else one launch a step.
    rows, columns: the tile of one program. warps: of one program.
    stream: weights are read from shared memory at every step, not held in registers.
    stages: 1, or the compiler's pipeline depth, which prefetches a step's tiles.
    registers: the most that a thread may use, or None for the compiler's choice.
    """

    resident: bool
    rows: int
    columns: int
    warps: int
    stream: bool = False
    registers: int | None = None
    stages: int = STAGES

    @property
    def options(self) -> dict[str, int]:
        """The compiler's options for this form."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages} | limit


# Shared memory that a block may use where there is no device to ask, in bytes (H100).
CAPACITY = 227 * 1024


def capacity(device: torch.device) -> int:
    if device.type != "cuda":
        return CAPACITY
    properties: Any = torch.cuda.get_device_properties(device)
    # AMD's have no larger limit to opt into.
    larger = getattr(properties, "shared_memory_per_block_optin", None)
    return int(larger or properties.shared_memory_per_block)


def sums(cell: Cell, resident: bool = True) -> bool:
    """Whether the step is given x + r as r, and no x."""
    if cell.norm is not None:
        return cell.norm.of_sum
    # Step by step, the inner step is torch's, which takes both.
    return cell.additive and (resident or cell.inner is None)


def need(inputs: Inputs, columns: int, backward: bool, stages: int) -> int:
    """Bytes of shared memory of a resident kernel, at most; `benchmarks.static` checks it.

    All weights; what the pipeline prefetches of a step's tiles; two tiles that change layout.
    """
    cell, size = inputs.equations, inputs.x.dtype.itemsize
    tiles = cell.gates + (inputs.d is not None) + (0 if inputs.m is None else inputs.m.shape[3])
    if backward:
        tiles += 2 * cell.states + (0 if sums(cell) else cell.gates)
    weights = cell.gates * columns * columns * size
    return weights + ROWS * columns * ((stages - 1) * tiles * size + 2 * max(size, 4))


def choose_form(inputs: Inputs, backward: bool, limit: int | None = None, amd: bool = AMD) -> Form:
    """The form for a problem on a device whose blocks have `limit` bytes of shared memory.

    Each is one whose compiled kernel uses no stack, as `benchmarks.static` shows.
    """
    H, dtype = inputs.x.shape[-1], inputs.x.dtype
    limit = capacity(inputs.x.device) if limit is None else limit
    columns = max(16, 1 << (H - 1).bit_length())
    # The compiler limits a kernel's registers, so that several programs run on one processor, and
    # then spills; a recurrent program has a processor to itself. Only where H is no multiple of 16,
    # so that single elements are loaded, does it treat a large kernel better left alone.
    light = H % 16 == 0 or inputs.equations.gates * columns * dtype.itemsize <= 768
    registers = 255 if light and not (amd or INTERPRETED) else None
    # Triton's compiler fails on some float64 products of tiles, so those are torch's.
    compiled_double = dtype == torch.float64 and not INTERPRETED
    depths = [n for n in (STAGES, 1) if need(inputs, columns, backward, n) <= limit]
    # The one case that would spill: single elements are loaded where H is no multiple of 16.
    flagged = inputs.lengths is not None or inputs.resets is not None
    ragged = columns > 64 and H % 16 > 0 and inputs.equations.gates > 3 and flagged
    if compiled_double or columns > 128 or not depths or (ragged and not backward):
        # A norm in the step needs all columns in one tile.
        width = columns if inputs.equations.normalises else min(columns, 128)
        rows, warps = max(1, min(4, 1024 // width)), 4 if width <= 1024 else 8
        return Form(False, rows, width, warps, registers=None if amd or INTERPRETED else 255)
    few = 64 if amd else 32 if dtype.itemsize == 2 else 16
    warps = 4 if columns <= few else 8
    return Form(True, ROWS, columns, warps, columns > 64, registers, depths[0])
