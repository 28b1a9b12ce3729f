"""What fits on chip: the form in which a problem's kernels are launched."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

from ..cells import Cell, find
from ..ops.sequence import Inputs
from ..precision import AMD

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


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
    ahead: a step's first product is made in the step before (forward).
    at_once: how many tiles change their layout together.
    """

    resident: bool
    rows: int
    columns: int
    warps: int
    stream: bool = False
    registers: int | None = None
    stages: int = STAGES
    ahead: bool = False
    at_once: int = 1

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
    """Bytes of shared memory of a resident kernel, at most; `benchmarks static` checks it.

    All weights; what the pipeline prefetches of a step's tiles; four tiles that change layout.
    """
    cell, size = inputs.equations, inputs.x.dtype.itemsize
    tiles = cell.gates + (inputs.d is not None) + (0 if inputs.m is None else inputs.m.shape[3])
    if backward:
        tiles += 2 * cell.states + (0 if sums(cell) else cell.gates)
    weights = cell.gates * columns * columns * size
    return weights + ROWS * columns * ((stages - 1) * tiles + 4) * size


def choose_form(inputs: Inputs, backward: bool, limit: int | None = None, amd: bool = AMD) -> Form:
    """The form for a problem on a device whose blocks have `limit` bytes of shared memory.

    Each is one whose compiled kernel uses no stack, as `benchmarks static` shows.
    """
    H, dtype, cell = inputs.x.shape[-1], inputs.x.dtype, inputs.equations
    limit = capacity(inputs.x.device) if limit is None else limit
    columns = max(16, 1 << (H - 1).bit_length())
    most = None if amd or INTERPRETED else 255
    # Triton's compiler fails on some float64 products of tiles, so those are torch's.
    compiled_double = dtype == torch.float64 and not INTERPRETED
    shallow = backward and cell.norm is not None and cell.gates > 1
    shallow |= backward and peephole(cell) and dtype.itemsize > 2 and featured(inputs)
    depths = [n for n in (STAGES, 1) if need(inputs, columns, backward, n) <= limit]
    # The interpreter has no registers to spill, so that tests reach the resident form of all.
    spilling = spills(inputs, backward, columns) and not INTERPRETED
    if compiled_double or columns > 128 or not depths or spilling:
        # A norm in the step needs all columns in one tile.
        width = columns if cell.normalises else min(columns, 128)
        rows, warps = max(1, min(4, 1024 // width)), 4 if width <= 1024 else 8
        return Form(False, rows, width, warps, registers=most)
    few = 64 if amd else 32 if dtype.itemsize == 2 and not shallow else 16
    warps, wide = 4 if columns <= few else 8, columns > 64
    # The compiler limits a kernel's registers, so that several programs run on one processor, and
    # then spills; a recurrent program has a processor to itself. Only where H is no multiple of 16,
    # so that single elements are loaded, does it treat a large kernel better left alone.
    light = H % 16 == 0 or cell.gates * columns * dtype.itemsize <= 768
    single = dtype.itemsize > 2
    alone = single or (backward and cell.norm is None and cell.gates == 3)
    alone = wide and alone and cell.gates > 1
    alone = featured(inputs) and (alone or (single and peephole(cell)))
    registers = most if light and not alone else None
    stages = 1 if shallow else depths[0]
    # Flags and masks of 8 bits in what a product is made of let the compiler choose a second layout
    # for the weights, which would stand on chip twice.
    plain = not featured(inputs)
    # A wide tile of 32 bits, or under a norm of several gates, has no registers left for the
    # products of a step ahead.
    ahead = plain and not (wide and (dtype.itemsize > 2 or (cell.norm and cell.gates > 1)))
    # Together, tiles need more registers than features leave to single elements, 32 bits or a norm.
    # AMD's compiler fails on a choice of pointers.
    roomy = plain or (H % 16 == 0 and dtype.itemsize == 2 and cell.norm is None)
    at_once = 4 if roomy and not amd else 1
    return Form(True, ROWS, columns, warps, wide, registers, stages, ahead, at_once)


def largest(cell: str, dtype: torch.dtype, device: torch.device, more: bool, backward: bool) -> int:
    """The largest H, a power of two, whose weights stay on chip; `more`: with lengths or so."""
    for H in (128, 64, 32, 16):
        x = torch.empty(1, 1, 1, find(cell).gates, H, dtype=dtype, device="meta")
        lengths = x.new_empty(1, 1, dtype=torch.int64) if more else None
        inputs = Inputs(x, x, None, None, None, None, None, lengths, None, cell, (False,))
        if choose_form(inputs, backward, capacity(device)).resident:
            return H
    return 0


def featured(inputs: Inputs) -> bool:
    """Whether a problem has more than a plain scan."""
    return any(v is not None for v in (inputs.m, inputs.d, inputs.lengths, inputs.resets))


def spills(inputs: Inputs, backward: bool, columns: int) -> bool:
    """Whether a resident kernel would be too large for a thread's registers, by its compilation.

    Single elements are loaded where H is no multiple of 16; and a norm keeps all gates at hand.
    """
    cell, more, ragged = inputs.equations, featured(inputs), inputs.x.shape[-1] % 16 > 0
    wide, single, norm = columns > 64, inputs.x.dtype.itemsize > 2, cell.norm
    several = norm is not None and cell.gates > 1
    per_gate = norm is not None and norm.per_gate
    crowded = peephole(cell) or (cell.normalises and (per_gate or single))
    if wide and ragged and cell.gates > 3 and (more or several or peephole(cell)):
        return True
    if not backward:
        return wide and ragged and more and single
    if wide:
        return (several and (ragged or crowded or more)) or (peephole(cell) and more)
    if more and single and ragged and (cell.normalises or peephole(cell)):
        return True
    return crowded and more and (columns > 32 or (single and peephole(cell)))


def peephole(cell: Cell) -> bool:
    """Whether its step has parameters for several gates."""
    return cell.rows - cell.gains > 2
