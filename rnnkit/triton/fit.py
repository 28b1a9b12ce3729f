"""What fits on chip: the form in which a problem's kernels are launched."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

from ..ops.sequence import Inputs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
AMD = torch.version.hip is not None


class Form(NamedTuple):
    """How a kernel is launched.

    resident: all weights stay on chip for the whole sequence; else one launch a step.
    rows, columns: the tile of one program. warps: of one program.
    stream: weights are read from shared memory at every step, not held in registers.
    registers: the most that a thread may use, or None for the compiler's choice.
    """

    resident: bool
    rows: int
    columns: int
    warps: int
    stream: bool = False
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """The compiler's options for this form."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps} | limit


# Shared memory that a block may use where there is no device to ask, in bytes (H100).
CAPACITY = 227 * 1024
# Rows of a resident program: the least that a matrix instruction takes.
ROWS = 16


def capacity(device: torch.device) -> int:
    if device.type != "cuda":
        return CAPACITY
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def need(gates: int, columns: int, dtype: torch.dtype, backward: bool) -> int:
    """Bytes of shared memory of a resident kernel, at most, as compiled kernels show.

    The weights, and tiles on their way between layouts; twice the weights for the backward of a
    wide dtype, which the compiler turns for the matrix units. `benchmarks.static` checks it.
    """
    weights = gates * columns * columns * dtype.itemsize
    wide = backward and dtype.itemsize > 2
    return weights * (2 if wide else 1) + ROWS * columns * 4 * (8 if wide else 4)


def choose_form(inputs: Inputs, backward: bool, limit: int | None = None, amd: bool = AMD) -> Form:
    """The form for a problem on a device whose blocks have `limit` bytes of shared memory.

    Each is one whose compiled kernel uses no stack, as `benchmarks.static` shows.
    """
    H, dtype, gates = inputs.x.shape[-1], inputs.x.dtype, inputs.equations.gates
    limit = capacity(inputs.x.device) if limit is None else limit
    columns = max(16, 1 << (H - 1).bit_length())
    # A low limit of registers, which the compiler otherwise sets itself so that several programs
    # run on one processor, would spill; a recurrent program has a processor to itself.
    registers = None if amd or INTERPRETED else 255
    # Triton's compiler fails on some float64 products of tiles, so those are torch's.
    compiled_double = dtype == torch.float64 and not INTERPRETED
    if compiled_double or columns > 128 or need(gates, columns, dtype, backward) > limit:
        return Form(False, 4, min(columns, 128), 4, registers=registers)
    if columns <= 64:
        warps = 8 if columns == 64 and not amd else 4
        return Form(True, ROWS, columns, warps, registers=registers)
    return Form(True, ROWS, columns, 8, stream=True)
