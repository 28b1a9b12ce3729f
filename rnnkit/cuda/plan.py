"""How the persistent kernels share a problem among a GPU's multiprocessors, and what fits.

P blocks share the units of a group and hold their weights for the whole sequence; the batch is cut
into slices, each with P blocks of its own, and a slice into chunks, which take turns: while one is
handed over between blocks, another is computed. Each block has a multiprocessor to itself.

Blocks hand over through L2, and then all must run at once, since they wait for each other; or, if a
GPU has clusters and P blocks fit into one, through each other's shared memory: a cluster runs at
once by itself, and more of them than the GPU has room for run one after another. Where one block
can hold all weights of a group, in full precision, it may have one row of the batch to itself.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, inf
from typing import NamedTuple

import torch

from ..cells import Cell, find
from ..native.recipes.cuda import KINDS
from .weights import TILE_ROWS, RowWeights, TileWeights, Weights, size_of

# The tiles of units that a block may have, and how these are handed over: SHAPES of csrc/cuda.
FORMS = ((1, "L2"), (2, "L2"), (1, "cluster"), (2, "cluster"), (4, "block"), (8, "block"))


class Gpu(NamedTuple):
    """What decides: its multiprocessors; the shared memory that a block may have, in bytes; how
    many clusters run at once of 1 block each, of 2, and so on to the most that a cluster can have;
    the forms to choose from; and the clock cycles of starting a kernel, which a step by cuBLAS has
    two of.
    """

    processors: int
    shared_bytes: int
    clusters: tuple[int, ...] = ()
    forms: tuple[tuple[int, str], ...] = FORMS
    start_cycles: float = 9000

    def only(self, *forms: tuple[int, str]) -> Gpu:
        """The GPU with these forms and no steps by cuBLAS, where they will do."""
        return self._replace(forms=forms, start_cycles=inf)


def clusters(processors: int, largest: int = 16) -> tuple[int, ...]:
    """Of a GPU whose clusters lie among 16 neighbouring multiprocessors."""
    return tuple(max(processors // 16, 1) * (16 // blocks) for blocks in range(1, largest + 1))


A100 = Gpu(108, 163 * 1024)
# Its clusters as CUDA says it of an H100 SXM, whose multiprocessors do not all have 15 neighbours.
H100 = Gpu(132, 227 * 1024, (132, 66, 39, 30, 22, 17, 15, 15, 9, *(7,) * 7))

NAMES = {torch.float16: "half", torch.bfloat16: "bfloat16", torch.float64: "double"}
# Of a chunk: barriers in a cluster, and the bytes of one; of a flag by L2 (csrc/cuda/exchange.h).
BARRIERS, BARRIER_BYTES, FLAG_BYTES = 4, 8, 128
# What the second dimension of a grid takes.
MOST_GROUPS = 65535

# Clock cycles on an H100 at 1.755 GHz, beside those of a product: of the rest of a chunk's step; of
# handing it over, by L2 or within a cluster. In a cycle a block gets so many bytes of what was
# handed over from L2, or sends so many to the others of its cluster. Fitted to 28 measured times of
# LSTM steps (bfloat16, by L2, H 64 to 1024, B 8 and 64), all of which they meet within 28 %; of
# kernels whose instructions have become fewer since. Within a block nothing was measured yet: its
# cycles are what the path through a step would take by its instructions' latencies.
STEP_CYCLES = {"L2": 2400, "cluster": 2400, "block": 900}
HANDOVER_CYCLES = {"L2": 1100, "cluster": 0, "block": 0}
RECEIVED_BYTES, SENT_BYTES = 37, 12
# The same of a step by cuBLAS: operations of a multiprocessor, at half of what the GPU can, and
# bytes that come from L2.
L2_BYTES = 3000
OPERATIONS = {"half": 2048, "bfloat16": 2048, "tf32": 1024, "ieee": 128}


class Plan(NamedTuple):
    """The form of one launch. columns: rows of the batch in a chunk; pitch: bytes of a row of what
    is handed over; waves: how many times as many slices there are as run at once; cycles: of a
    step, by the model above, to compare plans with.
    """

    unit_tiles: int
    via: str
    blocks: int
    slices: int
    chunks: int
    columns: int
    pitch: int
    shared_bytes: int
    waves: int
    cycles: int


class Tile(NamedTuple):
    """A block's part of the scan: `Block` of csrc/cuda/block.h, in numbers."""

    cell: str
    kind: str
    unit_tiles: int
    backward: bool
    via: str = "L2"

    @property
    def equations(self) -> Cell:
        return find(self.cell)

    @property
    def units(self) -> int:
        """Of a block."""
        return self.unit_tiles * TILE_ROWS

    def weights(self, gates: int) -> Weights:
        """Those of a product that serves so many gates."""
        of = RowWeights if self.via == "block" else TileWeights
        return of(self.kind, self.unit_tiles, self.backward, gates, self.equations.gates)

    @property
    def whole(self) -> Weights:
        """The weights, if there is one product."""
        return self.weights(self.equations.gates)

    @property
    def products(self) -> list[Weights]:
        """Of a step."""
        gates, inner = self.equations.gates, self.equations.inner
        each = (gates,) if inner is None else (inner.early, gates - inner.early)
        return [self.weights(count) for count in each]

    @property
    def columns(self) -> int:
        return self.whole.columns

    def pitch(self, H: int) -> int:
        cell = self.equations
        sums = cell.gains + cell.normalises * (1 + self.backward)
        found = sum(v.bytes(H) for v in self.products) + sums * ceil(H / self.units / 2) * 16
        return ceil(found / 128) * 128 + 64 if self.via == "cluster" else found

    def shared_bytes(self, H: int, chunks: int) -> int:
        cell, products = self.equations, self.products
        kept = cell.gates * (cell.norm is not None or cell.inner is not None) + cell.normalises
        each = cell.states + self.backward * (cell.rows - cell.gains) + kept
        values = max(v.sums for v in products) + (cell.gates + cell.rows) * self.units
        values += each * chunks * self.columns * self.units
        handed_over = 2 * self.columns * self.pitch(H)
        barriers = BARRIERS * BARRIER_BYTES if self.via == "cluster" else 0
        exchange = chunks * (handed_over + barriers) if self.via != "L2" else 0
        weights = sum(v.shared_bytes(H) for v in products)
        return max(weights + 4 * values + exchange, *(v.stage_bytes for v in products))

    @property
    def rounds(self) -> int:
        """How often blocks hand something over in a step."""
        cell = self.equations
        return len(self.products) * (1 + (cell.norm is not None)) + cell.normalises

    def cycles(self, H: int, chunks: int) -> int:
        """Of one step of all chunks."""
        step, handover = STEP_CYCLES[self.via], HANDOVER_CYCLES[self.via]
        work = sum(v.cycles(H) for v in self.products) + step + self.transfer_cycles(H)
        later = (self.rounds - 1) * (step // 2 + handover)
        return max(chunks * work, work + handover) + chunks * later

    def transfer_cycles(self, H: int) -> int:
        """Of bringing what the products are fed."""
        if self.via == "L2":
            return self.columns * self.pitch(H) // RECEIVED_BYTES
        others, gates = ceil(H / self.units) - 1, self.equations.gates if self.backward else 1
        return self.columns * self.units * gates * size_of(self.kind) * others // SENT_BYTES

    def plan(self, H: int, B: int, N: int, gpu: Gpu) -> Plan | str:
        """The plan with this tile; or why there is none."""
        blocks, every = ceil(H / self.units), ceil(B / self.columns)
        room = self.room(H, N, blocks, gpu)
        if isinstance(room, str):
            return room
        # A block by itself waits for nobody while it has one row.
        chunks = 1 if self.via == "block" else ceil(every / min(max(room // N, 1), every))
        limit = gpu.shared_bytes
        while self.via == "cluster" and chunks > 1 and self.shared_bytes(H, chunks) > limit:
            chunks -= 1
        need = self.shared_bytes(H, chunks)
        if need > limit:
            return (
                f"H = {H} and {chunks * self.columns} rows a block need {need // 1024} KB of "
                f"shared memory, and a block may have {limit // 1024} KB"
            )
        slices, pitch = ceil(every / chunks), self.pitch(H)
        if slices * N > MOST_GROUPS:
            return f"{slices} slices of N = {N} groups: a GPU's grid takes at most {MOST_GROUPS}"
        waves = ceil(slices * N / room)
        cycles, form = self.cycles(H, chunks) * waves, (self.unit_tiles, self.via)
        return Plan(*form, blocks, slices, chunks, self.columns, pitch, need, waves, cycles)

    def room(self, H: int, N: int, blocks: int, gpu: Gpu) -> int | str:
        """How many slices of groups, each with so many blocks, run at once; or why none can."""
        if self.via == "block":
            cell = self.equations
            if self.kind not in ("tf32", "ieee") or cell.norm is not None or cell.normalises:
                return f"a block by itself has no kernels for {self.cell} and {self.kind}"
            if blocks > 1:
                return f"H = {H}, and a block by itself may have {self.units} units"
            both = 2 * self.shared_bytes(H, 1) <= gpu.shared_bytes
            resident = 2 if self.unit_tiles == 4 and both else 1
            return gpu.processors * resident or "the GPU has no multiprocessors"
        if self.via == "L2":
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
    tiles = [Tile(cell, kind, count, backward, via) for count, via in gpu.forms]
    found = [tile.plan(H, B, N, gpu) for tile in tiles]
    plans = [v for v in found if isinstance(v, Plan)]
    # What a larger GPU would run, rather than what a newer one would.
    reasons = [v for v, tile in zip(found, tiles, strict=True) if tile.via == "L2"] or found
    return min(plans, key=lambda v: (v.cycles, v.blocks)) if plans else str(reasons[-1])


@lru_cache(4096)
def stepwise_cycles(cell: str, kind: str, H: int, B: int, N: int, gpu: Gpu) -> float:
    """Of a step by cuBLAS and a kernel for the rest, by the model above."""
    found = find(cell)
    starts = 2 if found.inner is None else 4
    weights = N * found.gates * H * H
    multiply = 2 * B * weights / (OPERATIONS[kind] * max(gpu.processors, 1))
    load = weights * size_of(kind) / L2_BYTES
    return starts * gpu.start_cycles + max(multiply, load)


def kind_of(dtype: torch.dtype, precision: str) -> str | None:
    """The kind of product for a dtype; precision: "tf32" or "ieee", of float32."""
    return NAMES.get(dtype, precision if dtype == torch.float32 else None)
