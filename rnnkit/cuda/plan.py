"""How the persistent kernels share a problem among a GPU's multiprocessors, and what fits.

P blocks share the units of a group and hold their weights for the whole sequence; the batch is cut
into slices, each with P blocks of its own, and a slice into chunks, which take turns: while one is
handed over between blocks, another is computed. Each block has a multiprocessor to itself, and all
must run at once, since they wait for each other.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import torch

from ..cells import Cell, find


class Gpu(NamedTuple):
    """What decides: its multiprocessors, and the shared memory that a block may have, in bytes."""

    processors: int
    shared_bytes: int


A100 = Gpu(108, 163 * 1024)
H100 = Gpu(132, 227 * 1024)

# What csrc/cuda/product.h has by the same names.
WARPS, TILE_BYTES, TILE_ROWS, TILE_COLUMNS, FRAGMENT_BYTES = 8, 64, 16, 8, 32
# The tiles of units that a block may have.
UNIT_TILES = (1, 2)

# Clock cycles on an H100, by its documented rates (derived, not measured): of one tile of a product
# for two warps that share a scheduler; of the rest of a chunk's step; of handing it over.
TILE_CYCLES = {"half": 64, "bfloat16": 64, "tf32": 64, "ieee": 128}
STEP_CYCLES, HANDOVER_CYCLES = 600, 1100


class Plan(NamedTuple):
    """The form of one launch. columns: rows of the batch in a chunk; pitch: bytes of a row of what
    is handed over; cycles: of a step, by the model above, to compare plans with.
    """

    unit_tiles: int
    blocks: int
    slices: int
    chunks: int
    columns: int
    pitch: int
    shared_bytes: int
    cycles: int


class Tile(NamedTuple):
    """A block's part of the product: `Persistent` of csrc/cuda/persistent.h, in numbers."""

    cell: str
    kind: str
    unit_tiles: int
    backward: bool

    @property
    def equations(self) -> Cell:
        return find(self.cell)

    @property
    def products(self) -> tuple[int, ...]:
        """How many gates each product of a step serves."""
        gates, inner = self.equations.gates, self.equations.inner
        return (gates,) if inner is None else (inner.early, gates - inner.early)

    @property
    def units(self) -> int:
        """Of a block."""
        return self.unit_tiles * TILE_ROWS

    @property
    def row_tiles(self) -> int:
        """Of all products together forward, of each backward."""
        return self.unit_tiles * (1 if self.backward else self.equations.gates)

    @property
    def column_tiles(self) -> int:
        return 2 if self.unit_tiles == 1 and self.kind != "ieee" else 1

    @property
    def columns(self) -> int:
        return self.column_tiles * TILE_COLUMNS

    @property
    def batch(self) -> int:
        """Tiles that are loaded together."""
        return 1 if self.kind == "ieee" else 2

    @property
    def held(self) -> int:
        """Tiles of the inner dimension that a warp has in registers, if there is one product."""
        return self.held_of(self.equations.gates)

    def held_of(self, gates: int) -> int:
        """The same of the product that serves so many gates."""
        registers = 64 if self.kind == "ieee" else 128
        here = registers * gates // self.equations.gates // 8 // self.rows_of(gates)
        return here // self.batch * self.batch

    def rows_of(self, gates: int) -> int:
        """Tiles of its rows."""
        return self.unit_tiles * (1 if self.backward else gates)

    def tiles(self, H: int, gates: int | None = None) -> int:
        """Tiles of the inner dimension that a warp has, of all gates or of those of one product."""
        size = 2 if self.kind in ("half", "bfloat16") else 4
        depth = H * ((gates or self.equations.gates) if self.backward else 1)
        return ceil(depth * size / (WARPS * TILE_BYTES))

    def pitch(self, H: int) -> int:
        cell, batch = self.equations, self.batch
        tiles = sum(ceil(self.tiles(H, gates) / batch) * batch for gates in self.products)
        sums = cell.gains + cell.normalises * (1 + self.backward)
        return tiles * WARPS * TILE_BYTES + sums * ceil(H / self.units / 2) * 16

    def shared_bytes(self, H: int, chunks: int) -> int:
        cell, tile = self.equations, WARPS * 32 * FRAGMENT_BYTES
        held = [self.rows_of(gates) * self.held_of(gates) * tile for gates in self.products]
        every = [self.rows_of(gates) * self.tiles(H, gates) * tile for gates in self.products]
        weights = sum(max(a - b, 0) for a, b in zip(every, held, strict=True))
        rows = max(self.rows_of(gates) for gates in self.products) * TILE_ROWS
        kept = cell.gates * (cell.norm is not None or cell.inner is not None) + cell.normalises
        each = cell.states + self.backward * (cell.rows - cell.gains) + kept
        values = WARPS * self.columns * (rows + 4) + (cell.gates + cell.rows) * self.units
        values += each * chunks * self.columns * self.units
        return max(weights + 4 * values, *held)

    @property
    def rounds(self) -> int:
        """How often blocks hand something over in a step."""
        cell = self.equations
        return len(self.products) * (1 + (cell.norm is not None)) + cell.normalises

    def cycles(self, H: int, chunks: int) -> int:
        """Of one step of all chunks."""
        product = self.row_tiles * self.column_tiles * max(self.tiles(H), 1)
        work = product * TILE_CYCLES[self.kind] + STEP_CYCLES
        return max(chunks * work, work + HANDOVER_CYCLES) + (self.rounds - 1) * HANDOVER_CYCLES

    def plan(self, H: int, B: int, N: int, gpu: Gpu) -> Plan | str:
        """The plan with this tile; or why there is none."""
        blocks = ceil(H / self.units)
        most = gpu.processors // (blocks * N)
        if most == 0:
            return (
                f"H = {H} of N = {N} groups takes {blocks * N} blocks at once, and the GPU has "
                f"{gpu.processors} multiprocessors"
            )
        every = ceil(B / self.columns)
        chunks = ceil(every / min(most, every))
        need = self.shared_bytes(H, chunks)
        if need > gpu.shared_bytes:
            return (
                f"H = {H} and {chunks * self.columns} rows a block need {need // 1024} KB of "
                f"shared memory, and a block may have {gpu.shared_bytes // 1024} KB"
            )
        slices, pitch, cycles = ceil(every / chunks), self.pitch(H), self.cycles(H, chunks)
        return Plan(self.unit_tiles, blocks, slices, chunks, self.columns, pitch, need, cycles)


def plan(cell: str, kind: str, backward: bool, H: int, B: int, N: int, gpu: Gpu) -> Plan | str:
    """The plan whose steps are the shortest by the model; or why there is none."""
    found = [Tile(cell, kind, k, backward).plan(H, B, N, gpu) for k in UNIT_TILES]
    plans = [v for v in found if isinstance(v, Plan)]
    return min(plans, key=lambda v: (v.cycles, v.blocks)) if plans else found[-1]


def kind_of(dtype: torch.dtype, precision: str) -> str | None:
    """The kind of product for a dtype; precision: "tf32" or "ieee", of float32."""
    names = {torch.float16: "half", torch.bfloat16: "bfloat16", torch.float32: precision}
    return names.get(dtype)
