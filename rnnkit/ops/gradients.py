"""What is parallel in time of a scan's backward: recomputing r, and the weights' gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..reference import scan as reference
from .sequence import Inputs, previous

if TYPE_CHECKING:
    from ..dispatch import Backend


def gradients(
    backend: Backend,
    inputs: Inputs,
    states: tuple[Tensor, ...],
    arriving: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dw, db, ds0 and dp: all that is parallel in time here, the rest in the backend."""
    prev = previous(inputs, states)
    gates = inputs.x.unbind(3)
    if inputs.m is not None:
        gates += inputs.m.to(inputs.x.dtype).unbind(3)
    r = reference.recurrent_gates(inputs, gates, prev.unbind(0), inputs.parameters)
    dx, dr, ds0, dp = backend.scan_backward(inputs, prev, r, *arriving)
    fed = reference.fed(inputs, gates, prev.unbind(0), r)
    dw = torch.cat([contract(dr[:, :, :, rows], q) for q, rows in fed], 1)
    # Without a bias nobody reads its gradient, and to sum it would read all of dr.
    db = dw.new_zeros(dw.shape[:2]) if inputs.b is None else dr.sum((0, 1)).flatten(1)
    return dx, dw, db, ds0, dp


def contract(dr: Tensor, q: Tensor) -> Tensor:
    """The gradient (N, G * H, H) of weights that met q (T, B, N, H) and got dr (T, B, N, G, H)."""
    rows = dr.flatten(3).flatten(0, 1).transpose(0, 1)
    return rows.mT @ q.flatten(0, 1).transpose(0, 1)
