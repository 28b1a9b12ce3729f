"""The loop over time of a persistent kernel of csrc/cuda, in machine code: what a step issues."""

from __future__ import annotations

from rnnkit.cuda.plan import Tile
from rnnkit.cuda.weights import (
    PIECE,
    TILE_BYTES,
    TILE_COLUMNS,
    TILE_ROWS,
    WARPS,
    RowWeights,
    Weights,
)

from .nvcc import Kernel
from .sass import Block

# Arguments that a call may leave out: the parts of a step that serve them do not run without.
OPTIONAL = {"m", "d", "lengths", "resets"}


class Loop:
    """The loop over time. `way` are the blocks of a step where nothing optional is given."""

    def __init__(self, kernel: Kernel, tile: Tile) -> None:
        self.kernel, self.tile, self.whole = kernel, tile, tile.whole
        code = kernel.code
        head, self.body = code.busiest_loop("BAR")
        self.way = [code.blocks[k] for k in code.path(head, self.body, self.worth)]

    def tile_products(self, v: Weights) -> int:
        """Instructions that multiply a tile of a product's weights with one of the batch: of 32
        lanes with four numbers each for every row, or of the matrix units, which do half a tile at
        once. In a block by itself, a piece of a thread's rows.
        """
        if isinstance(v, RowWeights):
            return PIECE * v.rows
        each = TILE_BYTES * TILE_ROWS * TILE_COLUMNS // 128 if v.kind == "ieee" else 2
        return each * v.row_tiles * v.column_tiles

    def loads(self, v: Weights) -> tuple[int, int]:
        """Loads from shared memory for such a tile: of operands, and of weights that are there."""
        if isinstance(v, RowWeights):
            return 1, v.rows
        each = (TILE_COLUMNS if v.kind == "ieee" else 1) * v.column_tiles
        return each * (self.tile.via == "cluster"), v.row_tiles * 2

    def products(self, block: Block) -> int:
        """Those of a block; other parts of a step have single ones of the same name, or some beside
        special functions.
        """
        found = block.count("FFMA" if self.tile.kind == "ieee" else "HMMA")
        if self.tile.via == "block" and block.count("MUFU"):
            return 0
        return found if found >= min(map(self.tile_products, self.tile.products)) else 0

    def worth(self, number: int) -> int:
        """How much a block does of what no step can do without."""
        blocks = self.kernel.code.blocks
        # An argument may be asked for at the end of the block before.
        near = [number, *(k for k in self.body if number in blocks[k].next)]
        seen = {name for k in near for name in self.kernel.arguments_of(blocks[k])}
        optional = any(name.split("_")[0] in OPTIONAL for name in seen)
        loads = 0 if optional else blocks[number].count("LDG")
        others = blocks[number].count("STG", "LDS", "STS", "BAR", "MUFU")
        return loads + others + self.products(blocks[number])

    def issued(self, H: int) -> tuple[int, int]:
        """Instructions of a step of one chunk: of a product, and others. A tile of weights, from
        registers or from shared memory, costs what it costs on average in the blocks that take it
        from there.
        """
        multiply = [b for b in self.way if self.products(b)]
        streamed = [b for b in multiply if self.streams(b)]
        held = [b for b in multiply if not self.streams(b)]
        other = sum(len(b.code) for b in self.way if not self.products(b))
        from_registers = min(self.whole.tiles(H), self.whole.held)
        from_shared = self.whole.tiles(H) - from_registers
        return round(from_registers * self.cost(held) + from_shared * self.cost(streamed)), other

    def streams(self, block: Block) -> bool:
        """Whether it takes weights from shared memory, where a cluster's operands are, too: by how
        much it loads, and which product it is a part of.
        """
        found = []
        for v in self.tile.products:
            tiles = self.products(block) / self.tile_products(v)
            operands, weights = self.loads(v)
            loads = block.count("LDS") - tiles * operands
            found += [(abs(loads), False), (abs(loads - tiles * weights), True)]
        return min(found)[1]

    def cost(self, blocks: list[Block]) -> float:
        """Instructions of a tile; of none where registers hold all, or nothing."""
        tiles = sum(self.products(b) for b in blocks) / self.tile_products(self.whole)
        return sum(len(b.code) for b in blocks) / tiles if tiles else 0

    @property
    def stepping(self) -> int:
        """Warps that have units; the others multiply only."""
        return min(WARPS, self.tile.units * self.tile.columns // 32)

    def figures(self, H: int) -> dict[str, int]:
        blocks = [self.kernel.code.blocks[k] for k in self.body]
        multiply, other = self.issued(H)
        return {
            "body": sum(len(b.code) for b in blocks),
            "local": sum(b.count("LDL", "STL") for b in blocks),
            "barriers": sum(b.count("BAR") for b in self.way),
            "products": self.whole.tiles(H) * self.tile_products(self.whole),
            "issued": multiply + other,
            "all_issued": WARPS * multiply + self.stepping * other,
        }
