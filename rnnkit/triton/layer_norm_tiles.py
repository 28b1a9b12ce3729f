"""How the kernels of layer normalisation cut rows into tiles, and programs over them.

Sizes of tiles are in words of four bytes, the registers that they take: an element of float64 takes
two. They are so large that no compiled kernel uses stack, as `benchmarks static` shows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from .fit import AMD, INTERPRETED

# The most columns of one tile, by the words of an element. LIGHT: of a light backward's.
FORWARD = {1: 16384, 2: 2048}
BACKWARD = {1: 4096, 2: 2048}
LIGHT = 8192
# The words of a tile of longer rows; and of several shorter rows.
CHUNK, TILE = 4096, 2048
# 32-bit offsets within a tile hold for so many rows of such strides.
MOST_ROWS = 128
LONGEST_STRIDE = 2**31 // MOST_ROWS
# The rows of a tile whose columns' sums are made.
STRIP = 4
# The words of a tile that a thread holds; fewer, where it holds sums or statistics beside them.
MANY, FEW = 16, 8
MOST_WARPS = 16
# The processors of a GPU where there is none to ask; the interpreter runs programs in turn.
PROCESSORS = 1 if INTERPRETED else 132
# Registers of a processor, and the most of a thread.
REGISTERS, MOST = 65536, 255


class Tile(NamedTuple):
    """whole: whether it has all columns of its rows. warps: of its program.

    free: whether the compiler may limit a thread's registers, so that more programs run at once.
    It then lets some kernels spill.
    """

    rows: int
    columns: int
    warps: int
    whole: bool
    free: bool = False

    @property
    def options(self) -> dict[str, int]:
        """The compiler's options."""
        if self.free or AMD or INTERPRETED:
            return {"num_warps": self.warps}
        return {"num_warps": self.warps, "maxnreg": min(MOST, REGISTERS // (32 * self.warps))}


def words_of(dtype: torch.dtype) -> int:
    """The words of an element in the dtype of the arithmetic."""
    return 2 if dtype == torch.float64 else 1


def forward_tile(N: int, words: int, plain: bool) -> Tile:
    return tile_of(N, words, FORWARD[words], MANY)._replace(free=is_light(N, words, plain))


def backward_tile(N: int, words: int, plain: bool) -> Tile:
    light = is_light(N, words, plain)
    return tile_of(N, words, LIGHT if light else BACKWARD[words], FEW)._replace(free=light)


def is_light(N: int, words: int, plain: bool) -> bool:
    """Whether a kernel is small: it has no activation and no residual, nor its sum's gradient
    (`plain`), and loads several columns at once.
    """
    return plain and N % 16 == 0 and words == 1


def tile_of(N: int, words: int, most: int, per: int) -> Tile:
    """The tile of rows of N columns; it does not depend on how many rows there are."""
    columns = triton.next_power_of_2(N)
    whole = columns <= most
    if not whole:
        columns, per = CHUNK // words, FEW
    # In float64, functions take more registers beside the tile's.
    rows = max(1, min(MOST_ROWS, TILE // words // (columns * words)))
    return Tile(rows, columns, warps_of(rows * columns * words, per), whole)


def strip_tile(words: int) -> Tile:
    """The tile of a program that makes its columns' sums over all rows."""
    return Tile(STRIP, TILE // STRIP // words, warps_of(TILE, MANY), False)


def warps_of(size: int, per: int) -> int:
    return max(1, min(MOST_WARPS, size // (32 * per)))


def programs(M: int, tile: Tile, device: torch.device, others: int = 1) -> int:
    """How many programs loop over M rows' tiles: `others` times as many give 1024 threads to each
    processor.
    """
    count = PROCESSORS
    if device.type == "cuda":
        count = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(triton.cdiv(M, tile.rows), 32 // tile.warps * count // others))
