"""How the persistent kernels share a problem among a GPU's multiprocessors, and what fits.

P blocks share the units of a group and hold their weights for the whole sequence; the batch is cut
into slices, each with P blocks of its own, and a slice into chunks, which take turns: while one is
handed over between blocks, another is computed. Each block has a multiprocessor to itself.

Blocks hand over through L2, and then all must run at once, since they wait for each other; or, if a
GPU has clusters and P blocks fit into one, through each other's shared memory: a cluster runs at
once by itself, and more of them than the GPU has room for run one after another.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import ceil, inf
from typing import NamedTuple

import torch

from ..cells import Cell, find
from ..native.recipes.cuda import KINDS

# The tiles of units that a block may have, and whether the blocks of a slice are a cluster.
FORMS = tuple(product((1, 2), (False, True)))


class Gpu(NamedTuple):
    """What decides: its multiprocessors; the shared memory that a block may have, in bytes; how
    many clusters run at once of 1 block each, of 2, and so on to the most that a cluster can have;
    the forms to choose from; and the clock cycles of starting a kernel, which a step by cuBLAS has
    two of.
    """

    processors: int
    shared_bytes: int
    clusters: tuple[int, ...] = ()
    forms: tuple[tuple[int, bool], ...] = FORMS
    start_cycles: float = 9000

    def only(self, *forms: tuple[int, bool]) -> Gpu:
        """The GPU with these forms and no steps by cuBLAS, where they will do."""
        return self._replace(forms=forms, start_cycles=inf)


def clusters(processors: int, largest: int = 16) -> tuple[int, ...]:
    """Of a GPU whose clusters lie among 16 neighbouring multiprocessors."""
    return tuple(max(processors // 16, 1) * (16 // blocks) for blocks in range(1, largest + 1))


A100 = Gpu(108, 163 * 1024)
# Its clusters as CUDA says it of an H100 SXM, whose multiprocessors do not all have 15 neighbours.
H100 = Gpu(132, 227 * 1024, (132, 66, 39, 30, 22, 17, 15, 15, 9, *(7,) * 7))

# What csrc/cuda/product.h has by the same names.
WARPS, TILE_BYTES, TILE_ROWS, TILE_COLUMNS, FRAGMENT_BYTES = 8, 64, 16, 8, 32
# Of a chunk in a cluster, and the bytes of one: csrc/cuda/exchange.h.
BARRIERS, BARRIER_BYTES = 4, 8
# What the second dimension of a grid takes.
MOST_GROUPS = 65535

# Clock cycles on an H100 at 1.755 GHz: of a tile of a product; of the rest of a chunk's step; of
# handing it over, by L2 or within a cluster. In a cycle a block gets so many bytes of what was
# handed over from L2, or sends so many to the others of its cluster. Fitted to 28 measured times of
# LSTM steps (bfloat16, by L2, H 64 to 1024, B 8 and 64), all of which they meet within 28 %; of
# kernels whose instructions have become fewer since.
TILE_CYCLES = {"half": 40, "bfloat16": 40, "tf32": 40, "ieee": 300}
STEP_CYCLES, HANDOVER_CYCLES = 2400, {False: 1100, True: 0}
RECEIVED_BYTES, SENT_BYTES = 37, 12
# The same of a step by cuBLAS: operations of a multiprocessor, at half of what the GPU can, and
# bytes that come from L2.
L2_BYTES = 3000
OPERATIONS = {"half": 2048, "bfloat16": 2048, "tf32": 1024, "ieee": 128}


class Plan(NamedTuple):
    """The form of one launch. columns: rows of the batch in a chunk; pitch: bytes of a row of what
    is handed over; waves: how many times as many clusters there are as run at once; cycles: of a
    step, by the model above, to compare plans with.
    """

    unit_tiles: int
    cluster: bool
    blocks: int
    slices: int
    chunks: int
    columns: int
    pitch: int
    shared_bytes: int
    waves: int
    cycles: int


class Tile(NamedTuple):
    """A block's part of the product: `Persistent` of csrc/cuda/persistent.h, in numbers."""

    cell: str
    kind: str
    unit_tiles: int
    backward: bool
    cluster: bool = False

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
        depth = ceil(H / 8) * 8 * ((gates or self.equations.gates) if self.backward else 1)
        return ceil(depth * size_of(self.kind) / (WARPS * TILE_BYTES))

    def pitch(self, H: int) -> int:
        cell, batch = self.equations, self.batch
        tiles = sum(ceil(self.tiles(H, gates) / batch) * batch for gates in self.products)
        sums = cell.gains + cell.normalises * (1 + self.backward)
        found = tiles * WARPS * TILE_BYTES + sums * ceil(H / self.units / 2) * 16
        return ceil(found / 128) * 128 + 64 if self.cluster else found

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
        handed_over = 2 * self.columns * self.pitch(H) + BARRIERS * BARRIER_BYTES
        exchange = chunks * handed_over if self.cluster else 0
        return max(weights + 4 * values + exchange, *held)

    @property
    def rounds(self) -> int:
        """How often blocks hand something over in a step."""
        cell = self.equations
        return len(self.products) * (1 + (cell.norm is not None)) + cell.normalises

    def cycles(self, H: int, chunks: int) -> int:
        """Of one step of all chunks."""
        product = self.row_tiles * self.column_tiles * max(self.tiles(H), 1)
        work = product * TILE_CYCLES[self.kind] + STEP_CYCLES + self.transfer_cycles(H)
        handover = HANDOVER_CYCLES[self.cluster]
        later = (self.rounds - 1) * (STEP_CYCLES // 2 + handover)
        return max(chunks * work, work + handover) + chunks * later

    def transfer_cycles(self, H: int) -> int:
        """Of bringing what the products are fed."""
        if not self.cluster:
            return self.columns * self.pitch(H) // RECEIVED_BYTES
        others, gates = ceil(H / self.units) - 1, self.equations.gates if self.backward else 1
        return self.columns * self.units * gates * size_of(self.kind) * others // SENT_BYTES

    def plan(self, H: int, B: int, N: int, gpu: Gpu) -> Plan | str:
        """The plan with this tile; or why there is none."""
        blocks, every = ceil(H / self.units), ceil(B / self.columns)
        room = self.room(H, N, blocks, gpu)
        if isinstance(room, str):
            return room
        chunks = ceil(every / min(max(room // N, 1), every))
        while self.cluster and chunks > 1 and self.shared_bytes(H, chunks) > gpu.shared_bytes:
            chunks -= 1
        need = self.shared_bytes(H, chunks)
        if need > gpu.shared_bytes:
            return (
                f"H = {H} and {chunks * self.columns} rows a block need {need // 1024} KB of "
                f"shared memory, and a block may have {gpu.shared_bytes // 1024} KB"
            )
        slices, pitch = ceil(every / chunks), self.pitch(H)
        if slices * N > MOST_GROUPS:
            return f"{slices} slices of N = {N} groups: a GPU's grid takes at most {MOST_GROUPS}"
        waves = ceil(slices * N / room)
        cycles, form = self.cycles(H, chunks) * waves, (self.unit_tiles, self.cluster)
        return Plan(*form, blocks, slices, chunks, self.columns, pitch, need, waves, cycles)

    def room(self, H: int, N: int, blocks: int, gpu: Gpu) -> int | str:
        """How many slices of groups, each with so many blocks, run at once; or why none can."""
        if not self.cluster:
            if blocks * N <= gpu.processors:
                return gpu.processors // blocks
            return (
                f"H = {H} of N = {N} groups takes {blocks * N} blocks at once, and the GPU has "
                f"{gpu.processors} multiprocessors"
            )
        if not gpu.clusters:
            return "the GPU has no clusters"
        if blocks <= len(gpu.clusters):
            return gpu.clusters[blocks - 1]
        return (
            f"H = {H} takes {blocks} blocks in a cluster, and the GPU's have up to "
            f"{len(gpu.clusters)}"
        )


@lru_cache(4096)
def plan(cell: str, kind: str, backward: bool, H: int, B: int, N: int, gpu: Gpu) -> Plan | str:
    """The plan whose steps are the shortest by the model; or why there is none."""
    if kind not in KINDS:
        return "the persistent form has no float64"
    # What is empty is never launched, and planned as if it were not.
    H, B, N = max(H, 1), max(B, 1), max(N, 1)
    tiles = [Tile(cell, kind, count, backward, cluster) for count, cluster in gpu.forms]
    found = [tile.plan(H, B, N, gpu) for tile in tiles]
    plans = [v for v in found if isinstance(v, Plan)]
    # What a larger GPU would run, rather than what a newer one would.
    reasons = [v for v, tile in zip(found, tiles, strict=True) if not tile.cluster] or found
    return min(plans, key=lambda v: (v.cycles, v.blocks)) if plans else str(reasons[-1])


def stepwise_cycles(cell: str, kind: str, H: int, B: int, N: int, gpu: Gpu) -> float:
    """Of a step by cuBLAS and a kernel for the rest, by the model above."""
    found = find(cell)
    starts = 2 if found.inner is None else 4
    weights = N * found.gates * H * H
    multiply = 2 * B * weights / (OPERATIONS[kind] * max(gpu.processors, 1))
    load = weights * size_of(kind) / L2_BYTES
    return starts * gpu.start_cycles + max(multiply, load)


def size_of(kind: str) -> int:
    """Bytes of an operand."""
    return 2 if kind in ("half", "bfloat16") else 4


def kind_of(dtype: torch.dtype, precision: str) -> str | None:
    """The kind of product for a dtype; precision: "tf32" or "ieee", of float32."""
    names = {torch.float16: "half", torch.bfloat16: "bfloat16", torch.float64: "double"}
    return names.get(dtype, precision if dtype == torch.float32 else None)
