"""Recurrent layers for very long sequences: less memory, more arithmetic.

The sequence is run in pieces, each under torch's activation checkpointing: what is kept for
backward is the state at the border of every piece, and the rest is computed again there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import dispatch
from .functional import Result, recurrent
from .projection import Noise, Weights

State = tuple[Tensor, ...] | None


def recurrent_in_chunks(
    steps: int,
    input: Tensor,
    state: State,
    weights: Sequence[Weights],
    cell: str,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    resets: Tensor | None,
    noise: Noise,
    return_cell_states: bool,
) -> Result:
    """`functional.recurrent` that saves states every `steps` steps only."""
    # torch.func refuses what checkpointing is made of; and in a compiled graph there would be one
    # part for every piece, and another graph for every T.
    whole = torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()
    if whole or input.shape[0] <= steps or not torch.is_grad_enabled():
        return recurrent(
            input, state, weights, cell, reverse, lengths, resets, noise, return_cell_states
        )
    results = []
    for k, back in enumerate(reverse):
        first = None if state is None else tuple(v[k : k + 1] for v in state)
        own = noise
        if noise.dropout is not None:
            own = noise._replace(dropout=noise.dropout.chunk(len(reverse), 1)[k])
        call = (weights[k : k + 1], cell, (back,), own, return_cell_states)
        results.append(direction(steps, input, first, lengths, resets, *call))
    outputs, lasts, cells = zip(*results, strict=True)
    shown = [v for v in cells if v is not None]
    return Result(
        torch.cat(outputs, -1),
        tuple(map(torch.cat, zip(*lasts, strict=True))),
        torch.cat(shown, -1) if shown else None,
    )


def direction(
    steps: int,
    input: Tensor,
    state: State,
    lengths: Tensor | None,
    resets: Tensor | None,
    weights: Sequence[Weights],
    cell: str,
    reverse: tuple[bool],
    noise: Noise,
    return_cell_states: bool,
) -> Result:
    """One direction, in pieces of `steps` steps of natural time, the last perhaps shorter."""

    def piece(input: Tensor, lengths: Tensor | None, resets: Tensor | None, *state: Tensor) -> Any:
        with dispatch.forcing(forced):  # computed again, it must run where it ran at first
            found = recurrent(
                input,
                state or None,
                weights,
                cell,
                reverse,
                lengths,
                resets,
                noise,
                return_cell_states,
            )
        return found.output, found.cells, *found.last

    T, outputs, cells, forced = input.shape[0], [], [], dispatch.forced()
    starts = range(0, T, steps)
    for start in reversed(starts) if reverse[0] else starts:
        end = min(start + steps, T)
        if reverse[0] and resets is not None and state is not None and end < T:
            state = parted(state, resets[end], lengths, end)
        output, more, *last = checkpoint(
            piece,
            input[start:end],
            None if lengths is None else (lengths - start).clamp(0, end - start),
            None if resets is None else resets[start:end],
            *(state or ()),
            use_reentrant=False,
            preserve_rng_state=noise.training and bool(noise.zoneout),
        )
        state = tuple(last)
        outputs.append(output)
        cells.append(more)
    if reverse[0]:
        outputs, cells = outputs[::-1], cells[::-1]
    assert state is not None
    return Result(torch.cat(outputs), state, torch.cat(cells) if return_cell_states else None)


def parted(
    state: tuple[Tensor, ...], resets: Tensor, lengths: Tensor | None, time: int
) -> tuple[Tensor, ...]:
    """The states (1, B, H) with which a backward direction crosses into the steps before `time`.

    Inside a piece the scan parts sequences at resets; this is the reset at its border.
    """
    part = resets if lengths is None else resets & (time < lengths)
    return tuple(v.masked_fill(part[:, None], 0) for v in state)
