"""Launches the kernels of layer normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.rows import allocate, allocate_gradients
from .activations import ACTIVATIONS
from .launch import Launch
from .layer_norm_kernels import (
    backward_chunks_kernel,
    backward_kernel,
    layer_norm_kernel,
    sums_kernel,
)
from .layer_norm_tiles import (
    BACKWARD,
    FORWARD,
    LONGEST_STRIDE,
    Tile,
    backward_tile,
    forward_tile,
    programs,
    strip_tile,
    words_of,
)
from .usable import why_unusable

if TYPE_CHECKING:
    from ..dispatch import LayerProblem


class Forward(NamedTuple):
    """The tensors of the forward kernel."""

    x: Any
    residual: Any
    weight: Any
    bias: Any
    y: Any
    total: Any
    stats: Any


class Backward(NamedTuple):
    """The tensors of the backward kernels; dw and db are sums of single programs."""

    dy: Any
    dtotal: Any
    v: Any
    weight: Any
    bias: Any
    stats: Any
    dv: Any
    dw: Any
    db: Any


class ForwardSizes(NamedTuple):
    """Sizes, and the strides of rows."""

    M: Any
    N: Any
    x: Any
    residual: Any


class BackwardSizes(NamedTuple):
    M: Any
    N: Any
    dy: Any
    dtotal: Any
    v: Any


class Static(NamedTuple):
    """What a kernel is compiled for; each is a tl.constexpr. BM, BN: rows and columns of a tile."""

    EPS: Any
    DTYPE: Any
    BM: Any
    BN: Any
    WHOLE: Any


def why_not(problem: LayerProblem) -> str | None:
    """Why the kernels cannot run this problem; None if they can."""
    return why_unusable(problem)


def note(problem: LayerProblem) -> str:
    words = words_of(problem.dtype)
    return (
        f"rows are read once up to N = {FORWARD[words]} forward and {BACKWARD[words]} backward; "
        "longer ones twice, in chunks, and again for the gradients of weight and bias"
    )


def static_of(dtype: torch.dtype, eps: float, tile: Tile) -> Static:
    wide = tl.float64 if dtype == torch.float64 else tl.float32
    return Static(*map(tl.constexpr, (eps, wide, tile.rows, tile.columns, tile.whole)))


def dense(v: Tensor | None) -> Tensor | None:
    """The tensor with dense columns, and rows near enough for 32-bit offsets within a tile."""
    if v is None or (v.stride(1) == 1 and v.stride(0) <= LONGEST_STRIDE):
        return v
    return v.contiguous()


def stride(v: Tensor | None) -> int:
    return 0 if v is None else v.stride(0)


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, total and stats, as `rnnkit.reference.layer_norm.layer_norm`."""
    made = allocate(x, residual, dtype)
    with torch.cuda.device_of(x):
        forward_launch(x, weight, bias, residual, eps, activation, *made).go()
    return made


def forward_launch(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str | None,
    y: Tensor,
    total: Tensor,
    stats: Tensor,
) -> Launch:
    (M, N), words = x.shape, words_of(stats.dtype)
    tile = forward_tile(N, words, plain=activation is None and residual is None)
    x, residual = dense(x), dense(residual)
    weight, bias = (None if p is None else p.contiguous() for p in (weight, bias))
    a = Forward(x, residual, weight, bias, y, None if residual is None else total, stats)
    z = ForwardSizes(M, N, stride(x), stride(residual))
    arguments = (a, z, ACTIVATIONS[activation][0], static_of(stats.dtype, eps, tile))
    grid = (triton.cdiv(M, tile.rows), 1, 1)
    return Launch(layer_norm_kernel, grid, arguments, tile.options)


def layer_norm_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    v: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dv, dw and db, as `rnnkit.reference.layer_norm.layer_norm_backward`."""
    dv, *rest = allocate_gradients(v, weight, bias)
    launches = backward_launches(dy, dtotal, v, weight, bias, stats, activation, dv)
    with torch.cuda.device_of(v):
        for launch in launches:
            launch.go()
    partial = launches[-1].arguments[0]
    dw, db = (
        empty if sums is None else sums.sum(0).to(empty.dtype)
        for sums, empty in zip((partial.dw, partial.db), rest, strict=True)
    )
    return dv, dw, db


def backward_launches(
    dy: Tensor,
    dtotal: Tensor | None,
    v: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    activation: str | None,
    dv: Tensor,
) -> list[Launch]:
    """One launch; or, of rows too long for a tile, one for dv and one for the sums of dw and db."""
    (M, N), words = v.shape, words_of(stats.dtype)
    tile = backward_tile(N, words, plain=activation is None and dtotal is None)
    dy, dtotal, v = (dense(t) for t in (dy, dtotal, v))
    weight, bias = (None if p is None else p.contiguous() for p in (weight, bias))
    z = BackwardSizes(M, N, stride(dy), stride(dtotal), stride(v))
    a = Backward(dy, dtotal, v, weight, bias, stats.contiguous(), dv, None, None)

    def launch(kernel: Any, grid: tuple[int, int, int], a: Backward, tile: Tile) -> Launch:
        arguments = (a, z, ACTIVATIONS[activation][1], static_of(stats.dtype, 0.0, tile))
        return Launch(kernel, grid, arguments, tile.options)

    def partial(count: int) -> Backward:
        dw, db = (None if p is None else stats.new_empty(count, N) for p in (weight, bias))
        return a._replace(dw=dw, db=db)

    if tile.whole:
        count = programs(M, tile, v.device)
        return [launch(backward_kernel, (count, 1, 1), partial(count), tile)]
    launches = [launch(backward_chunks_kernel, (triton.cdiv(M, tile.rows), 1, 1), a, tile)]
    if weight is not None or bias is not None:
        strip = strip_tile(words)
        blocks = triton.cdiv(N, strip.columns)
        count = programs(M, strip, v.device, blocks)
        launches.append(launch(sums_kernel, (count, blocks, 1), partial(count), strip))
    return launches
