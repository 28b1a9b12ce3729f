"""A block's weights of the gates that one product of a step serves, in numbers: what csrc/cuda has
in weights.h and rows.h by the same names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil

WARPS, TILE_BYTES, TILE_ROWS, TILE_COLUMNS, FRAGMENT_BYTES = 8, 64, 16, 8, 32
THREADS = 32 * WARPS
# Of `RowWeights`: values of a piece, and registers for weights.
PIECE, REGISTERS = 4, 160
# Bytes of the shared memory by way of which registers get theirs.
MOST_BYTES = 64 * 1024
# Clock cycles of an H100, of a tile of a product.
TILE_CYCLES = {"half": 40, "bfloat16": 40, "tf32": 40, "ieee": 300}


@dataclass(frozen=True)
class GateWeights(ABC):
    """gates: those of the product; all_gates: those of the cell."""

    kind: str
    unit_tiles: int
    backward: bool
    gates: int
    all_gates: int

    @property
    @abstractmethod
    def held(self) -> int:
        """Tiles of the inner dimension that registers hold, at most."""

    @abstractmethod
    def tiles(self, H: int) -> int:
        """Tiles of the inner dimension that there are."""

    @property
    @abstractmethod
    def tile_bytes(self) -> int:
        """Of the tiles side by side in a block."""

    def depth(self, H: int) -> int:
        """Of the inner dimension."""
        return ceil(H / 8) * 8 * (self.gates if self.backward else 1)

    def shared_bytes(self, H: int) -> int:
        """Of the weights that registers do not hold."""
        return max(self.tiles(H) - self.held, 0) * self.tile_bytes

    @property
    def stage_bytes(self) -> int:
        """Of those on their way to registers."""
        return min(self.held, MOST_BYTES // self.tile_bytes) * self.tile_bytes


class TileWeights(GateWeights):
    """Of a block that shares a group's units with others."""

    @property
    def row_tiles(self) -> int:
        return self.unit_tiles * (1 if self.backward else self.gates)

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
        """Tiles of the inner dimension that a warp has in registers, at most."""
        registers = 64 if self.kind == "ieee" else 128
        here = registers * self.gates // self.all_gates // 8 // self.row_tiles
        return here // self.batch * self.batch

    def tiles(self, H: int) -> int:
        """Tiles of the inner dimension that a warp has."""
        return ceil(self.depth(H) * size_of(self.kind) / (WARPS * TILE_BYTES))

    def bytes(self, H: int) -> int:
        """Of a row of what is handed over for the product."""
        return ceil(self.tiles(H) / self.batch) * self.batch * WARPS * TILE_BYTES

    @property
    def tile_bytes(self) -> int:
        """Of all warps' and rows' tiles."""
        return self.row_tiles * WARPS * 32 * FRAGMENT_BYTES

    @property
    def sums(self) -> int:
        return WARPS * self.columns * (self.row_tiles * TILE_ROWS + 4)

    def cycles(self, H: int) -> int:
        """Of a product."""
        return self.row_tiles * self.column_tiles * max(self.tiles(H), 1) * TILE_CYCLES[self.kind]


class RowWeights(GateWeights):
    """Of a block that has all units of a group, and one row of the batch at a time. A tile is a
    piece of each row that a thread has.
    """

    @property
    def columns(self) -> int:
        return 1

    @property
    def units(self) -> int:
        return self.unit_tiles * TILE_ROWS

    @property
    def row_gates(self) -> int:
        return 1 if self.backward else self.gates

    @property
    def shares(self) -> int:
        """Threads that share a row."""
        return 4 if self.row_gates > 2 else 16 // self.row_gates

    @property
    def rows(self) -> int:
        """Of a thread."""
        return self.units * self.shares // THREADS * self.row_gates

    @property
    def held(self) -> int:
        """Pieces of a row that a thread has in registers, at most."""
        here = REGISTERS * self.gates // self.all_gates // self.rows // PIECE
        return min(self.tiles(self.units), here)

    def tiles(self, H: int) -> int:
        """Pieces of a row that a thread has."""
        return ceil(self.depth(H) / (self.shares * PIECE))

    def bytes(self, H: int) -> int:
        return self.shares * self.tiles(self.units) * 16

    @property
    def tile_bytes(self) -> int:
        """Of all threads' and rows' pieces."""
        return self.rows * THREADS * 16

    @property
    def sums(self) -> int:
        return self.units * self.row_gates

    def cycles(self, H: int) -> int:
        """Of a product: a scheduler issues for two warps what they multiply and load, and 128 bytes
        of weights come from shared memory in one.
        """
        issued = WARPS // 4 * self.tiles(H) * (PIECE * self.rows + 1)
        return issued + self.shared_bytes(H) // 128


Weights = TileWeights | RowWeights


def size_of(kind: str) -> int:
    """Bytes of an operand."""
    return 2 if kind in ("half", "bfloat16") else 4
