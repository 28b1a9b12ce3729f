"""The results of the scan's operators: one allocation for the real ones and the fake ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cells import find
from .sequence import Inputs


def allocate(x: Tensor, cell: str) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised results, for the real operator and the fake one alike."""
    T, B, N, _, H = x.shape
    states = find(cell).states
    return (
        x.new_empty(T, B, N, H),
        x.new_empty(states - 1, T, B, N, H),
        x.new_empty(states, B, N, H),
    )


def allocate_products(x: Tensor, cell: str, keep: bool) -> tuple[Tensor, Tensor]:
    """Uninitialised products (T, B, N, G, H) and scales (T, B, N, G or 0), or empty ones.

    They are what `recurrent_gates` gives of every step, in at least float32; scales of a norm only.
    """
    T, B, N, G, H = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    steps, scales = T if keep else 0, 0 if find(cell).norm is None else G
    return (
        x.new_empty(steps, B, N, G, H, dtype=dtype),
        x.new_empty(steps, B, N, scales, dtype=dtype),
    )


def allocate_gradients(x: Tensor, w: Tensor, cell: str) -> tuple[Tensor, ...]:
    """Uninitialised dx, dw, db, ds0 and dp."""
    T, B, N, G, H = x.shape
    equations = find(cell)
    shapes = (
        (T, B, N, G, H),
        (N, G * H, H),
        (N, G * H),
        (equations.states, B, N, H),
        (N, equations.rows, H),
    )
    return tuple(x.new_empty(shape) for shape in shapes)


def empty_gradients(
    inputs: Inputs, dlast: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of a scan of no steps or no rows: the final state is the initial one."""
    dx, dw, db, ds0, dp = (v.zero_() for v in allocate_gradients(inputs.x, inputs.w, inputs.cell))
    return dx, dw, db, ds0 if dlast is None else dlast.clone(), dp
