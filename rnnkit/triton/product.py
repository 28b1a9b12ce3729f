"""The recurrent product of one step, where the weights are too many for one program.

Its tiles and the order of its sums do not depend on the batch, as those of a BLAS library do: so a
row's result is the same, bit for bit, alone and in any batch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.products import product as by_library
from .fit import INTERPRETED

# The tile of one program: rows, columns, and the depth of one partial sum.
ROWS, COLUMNS, DEPTH = 32, 64, 32


@triton.jit
def product_kernel(
    h, w, b, out, B, N, R, H, strides,
    BB: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (B, N, R) = h (B, N, H) @ w (N, R, H) + b (N, R); strides: h's rows and groups, w's."""
    row, n = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB), tl.program_id(1).to(tl.int64)
    col, k = tl.program_id(2) * BR + tl.arange(0, BR), tl.arange(0, BK)
    left = h + row[:, None] * strides[0] + n * strides[1] + k[None, :]
    right = w + n * strides[2] + col[None, :].to(tl.int64) * strides[3] + k[:, None]
    exists, real = (row < B)[:, None], (col < R)[None, :]
    acc = tl.zeros((BB, BR), DTYPE)
    for first in tl.range(0, H, BK):
        inside = k < H - first
        q = tl.load(left + first, mask=exists & inside[None, :], other=0)
        v = tl.load(right + first, mask=real & inside[:, None], other=0)
        acc = tl.dot(q, v, acc, input_precision=PRECISION, out_dtype=DTYPE)
    if b is not None:
        acc += tl.load(b + n * R + col, mask=col < R, other=0).to(DTYPE)[None, :]
    here = out + (row[:, None] * N + n) * R + col[None, :]
    tl.store(here, acc.to(out.dtype.element_ty), mask=exists & real)


def arguments(h: Tensor, w: Tensor, b: Tensor | None, out: Tensor, precision: str) -> Any:
    """The kernel's grid and its arguments."""
    (B, N, H), R = h.shape, w.shape[1]
    strides = (h.stride(0), h.stride(1), w.stride(0), w.stride(1))
    wide = tl.float64 if h.dtype == torch.float64 else tl.float32
    grid = (triton.cdiv(B, ROWS), N, triton.cdiv(R, COLUMNS))
    tile = (ROWS, COLUMNS, DEPTH)
    return grid, (h, w, b, out, B, N, R, H, strides, *tile, wide, precision)


def product(h: Tensor, w: Tensor, b: Tensor | None, precision: str) -> Tensor:
    """h @ w.T + b in each group: (B, N, H), (N, R, H) and (N, R) to (B, N, R)."""
    if h.dtype == torch.float64 and not INTERPRETED:
        return by_library(h, w, b)  # triton's compiler fails on some products in float64
    h, w = (v if v.stride(-1) == 1 else v.contiguous() for v in (h, w))
    out = h.new_empty(*h.shape[:2], w.shape[1])
    grid, given = arguments(h, w, None if b is None else b.contiguous(), out, precision)
    product_kernel[grid](*given)
    return out
