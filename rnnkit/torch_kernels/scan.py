"""Recurrent layers on torch.nn's own kernels: whole plain layers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import _VF, Tensor

from ..cells import find

if TYPE_CHECKING:
    from ..dispatch import Problem
    from ..projection import Weights

Tensors = tuple[Tensor, ...]

LAYERS: dict[str, Any] = {
    "rnn_tanh": _VF.rnn_tanh,
    "rnn_relu": _VF.rnn_relu,
    "lstm": _VF.lstm,
    "gru": _VF.gru,
}
CELLS: dict[str, Any] = {
    "rnn_tanh": _VF.rnn_tanh_cell,
    "rnn_relu": _VF.rnn_relu_cell,
    "lstm": _VF.lstm_cell,
    "gru": _VF.gru_cell,
}


def why_not(problem: Problem) -> str | None:
    if problem.extras is None:
        return "it runs whole layers, and this is a bare scan"
    if problem.cell not in LAYERS:
        return f"torch.nn has no cell {problem.cell!r}"
    if problem.forward_mode:
        return "not all of torch.nn's kernels have forward-mode derivatives"
    if problem.extras:
        return f"torch.nn has no {', '.join(problem.extras)}"
    return None


def layer(
    input: Tensor,
    state: Tensors | None,
    weights: Sequence[Weights],
    cell: str,
    reverse: Sequence[bool],
) -> tuple[Tensor, Tensors]:
    """output (T, B, D * H) and the final states, each (D, B, H)."""
    if tuple(reverse) == (True,):
        output, last = layer(input.flip(0), state, weights, cell, (False,))
        return output.flip(0), last
    first, D = weights[0], len(weights)
    state = start(input, input.shape[1], state, [weights], cell)
    if input.shape[0] == 1 and D == 1 and first.hr is None:
        step: Any = tuple(v[0] for v in state)
        found = CELLS[cell](input[0], step if cell == "lstm" else step[0], *first[:4])
        last = tuple(v[None] for v in (found if cell == "lstm" else (found,)))
        return last[0].clone(), last
    flat = [v for w in weights for v in w[:5] if v is not None]
    biased, train = first.b_ih is not None, torch.is_grad_enabled()
    hx: Any = state if cell == "lstm" else state[0]
    output, *final = LAYERS[cell](input, hx, flat, biased, 1, 0.0, train, D == 2, False)
    return output, tuple(final)


def packed(
    data: Tensor,
    sizes: Tensor,
    state: Tensors | None,
    layers: Sequence[Sequence[Weights]],
    cell: str,
    dropout: float,
) -> tuple[Tensor, Tensors]:
    """All layers over a packed batch, without padding it: its data, and each final state."""
    state = start(data, int(sizes[0]), state, layers, cell)
    flat = [v for weights in layers for w in weights for v in w[:5] if v is not None]
    biased, D = layers[0][0].b_ih is not None, len(layers[0])
    hx: Any = state if cell == "lstm" else state[0]
    train = dropout > 0 or torch.is_grad_enabled()
    output, *final = LAYERS[cell](
        data, sizes, hx, flat, biased, len(layers), dropout, train, D == 2
    )
    return output, tuple(final)


def start(
    input: Tensor,
    B: int,
    state: Tensors | None,
    layers: Sequence[Sequence[Weights]],
    cell: str,
) -> Tensors:
    """The initial states, dense; zeros if none are given."""
    if state is not None:
        return tuple(v.contiguous() for v in state)
    first, rows = layers[0][0], len(layers) * len(layers[0])
    sizes = [first.hh.shape[1], first.hh.shape[0] // find(cell).gates][: find(cell).states]
    return tuple(input.new_zeros(rows, B, size) for size in sizes)
