"""The arguments and results of layer normalisation of rows: what is expected, and what is made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def checked_sizes(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not sizes or min(sizes) < 0:
        raise ValueError(
            f"normalized_shape must be one or more sizes of at least 0, got {normalized_shape}"
        )
    return sizes


def check(
    x: Tensor,
    sizes: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> None:
    """Raises unless the arguments fit together."""
    for name, value in (("x", x), ("weight", weight), ("bias", bias), ("residual", residual)):
        if value is None:
            continue
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {value.dtype}")
        if value.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} (x's), got {value.device}")
    # A broadcast residual is more often a mistake than a wish, and no fused kernel takes one.
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"residual must have the input's shape {tuple(x.shape)}, got {tuple(residual.shape)}"
        )
    # In torch's words, which users of torch.nn.LayerNorm know.
    if tuple(x.shape[-len(sizes) :]) != sizes:
        expected = ", ".join(map(str, ("*", *sizes)))
        raise RuntimeError(
            f"Given normalized_shape={list(sizes)}, expected input with shape [{expected}], but "
            f"got input of size{list(x.shape)}"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and tuple(value.shape) != sizes:
            raise RuntimeError(
                f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                f"{list(value.shape)} and normalized_shape = {list(sizes)}"
            )


def total_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """The dtype of x + residual, and of y but under autocast."""
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


def allocate(
    x: Tensor, residual: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised y, total and stats, for kernels and the fake operator alike."""
    M, N, total = *x.shape, total_dtype(x, residual)
    return (
        x.new_empty(M, N, dtype=dtype),
        x.new_empty(0 if residual is None else M, N, dtype=total),
        x.new_empty(2, M, dtype=torch.promote_types(total, torch.float32)),
    )


def allocate_gradients(
    v: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised dv, dw and db; empty for an absent weight or bias."""
    dw, db = (
        v.new_empty(0) if p is None else v.new_empty(p.shape, dtype=p.dtype) for p in (weight, bias)
    )
    return v.new_empty(v.shape), dw, db
