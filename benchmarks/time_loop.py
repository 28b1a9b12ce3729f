"""The loop over time of a persistent kernel of csrc/cuda, in machine code: what a step issues."""

from __future__ import annotations

from rnnkit.cuda.plan import TILE_BYTES, TILE_COLUMNS, TILE_ROWS, Tile

from .nvcc import Kernel
from .sass import Block

# Arguments that a call may leave out: the parts of a step that serve them do not run without.
OPTIONAL = {"m", "d", "lengths", "resets"}


class Loop:
    """The loop over time. `way` are the blocks of a step where nothing optional is given."""

    def __init__(self, kernel: Kernel, tile: Tile) -> None:
        self.kernel, self.tile = kernel, tile
        code = kernel.code
        head, self.body = code.busiest_loop("BAR")
        self.way = [code.blocks[k] for k in code.path(head, self.body, self.worth)]

    @property
    def tile_products(self) -> int:
        """Instructions that multiply one tile of weights with one of the batch: of 32 lanes with
        four numbers each for every row, or of the matrix units, which do half a tile at once.
        """
        each = TILE_BYTES * TILE_ROWS * TILE_COLUMNS // 128 if self.tile.kind == "ieee" else 2
        return each * self.tile.row_tiles * self.tile.column_tiles

    def products(self, block: Block) -> int:
        """Those of a block; other parts of a step have single ones of the same name."""
        found = block.count("FFMA" if self.tile.kind == "ieee" else "HMMA")
        least = min(map(self.tile.rows_of, self.tile.products)) / self.tile.row_tiles
        return found if found >= least * self.tile_products else 0

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

    def issued(self, H: int) -> int:
        """Instructions of a step of one chunk. A tile of weights, from registers or from shared
        memory, costs what it costs on average in the blocks that take it from there.
        """
        multiply = [b for b in self.way if self.products(b)]
        streamed = [b for b in multiply if self.streams(b)]
        held = [b for b in multiply if not self.streams(b)]
        other = sum(len(b.code) for b in self.way if not self.products(b))
        tiles = self.tile.tiles(H)
        from_registers = min(tiles, self.tile.held)
        from_shared = tiles - from_registers
        return round(other + from_registers * self.cost(held) + from_shared * self.cost(streamed))

    def streams(self, block: Block) -> bool:
        """Whether it takes weights from shared memory, where a cluster's operands are, too: by how
        much it loads, and which product it is a part of.
        """
        each = (TILE_COLUMNS if self.tile.kind == "ieee" else 1) * self.tile.column_tiles
        found = []
        for gates in self.tile.products:
            rows = self.tile.rows_of(gates)
            tiles = self.products(block) / self.tile_products * self.tile.row_tiles / rows
            operands, weights = tiles * each * self.tile.cluster, tiles * rows * 2
            loads = block.count("LDS") - operands
            found += [(abs(loads), False), (abs(loads - weights), True)]
        return min(found)[1]

    def cost(self, blocks: list[Block]) -> float:
        """Instructions of a tile."""
        tiles = sum(self.products(b) for b in blocks) / self.tile_products
        return sum(len(b.code) for b in blocks) / tiles

    def figures(self, H: int) -> dict[str, int]:
        blocks = [self.kernel.code.blocks[k] for k in self.body]
        return {
            "body": sum(len(b.code) for b in blocks),
            "local": sum(b.count("LDL", "STL") for b in blocks),
            "barriers": sum(b.count("BAR") for b in self.way),
            "products": self.tile.tiles(H) * self.tile_products,
            "issued": self.issued(H),
        }
