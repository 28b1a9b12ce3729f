"""What a scan reads, and what reverse, lengths and resets mean: the one place for both.

Time runs forward or, for the groups that `reverse` names, backward. "Loop order" is the order in
which a group meets its steps: `turn` changes between it and natural time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..cells import Cell, find

# The bits of a step's flags.
FRESH, LIVE = 1, 2


class Inputs(NamedTuple):
    """The arguments of `rnnkit::scan` in the order of its schema; `ops.scan.scan` explains them."""

    x: Tensor
    w: Tensor
    b: Tensor | None
    s0: Tensor | None
    p: Tensor | None
    m: Tensor | None
    d: Tensor | None
    lengths: Tensor | None
    resets: Tensor | None
    cell: str
    reverse: Sequence[bool]

    @property
    def equations(self) -> Cell:
        return find(self.cell)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The parameters of the step, each (N, H)."""
        return () if self.p is None else self.p[:, self.equations.gains :].unbind(1)

    @property
    def gain(self) -> Tensor | None:
        """The gain (N, G, H) of the norm before the step, if the cell has one."""
        return None if self.p is None or not self.equations.gains else self.p[:, : self.x.shape[3]]

    @property
    def late(self) -> int:
        """The first of the gates whose product waits for the inner step; all gates if none does."""
        inner = self.equations.inner
        return self.equations.gates if inner is None else inner.early


def products(inputs: Inputs) -> list[slice]:
    """The gates that each recurrent product of a step serves."""
    late, G = inputs.late, inputs.x.shape[3]
    return [slice(0, G)] if late == G else [slice(0, late), slice(late, G)]


def runs(v: Tensor, reverse: Sequence[bool], dim: int) -> list[tuple[Tensor, bool]]:
    """The groups of v in len(reverse) equal runs, each with its direction."""
    if len(reverse) == 1:
        return [(v, reverse[0])]
    size = v.shape[dim] // len(reverse)
    return list(zip(v.split(size, dim), reverse, strict=True))


def turn(v: Tensor, reverse: Sequence[bool]) -> Tensor:
    """(T, B, N, ...) with the reversed groups' time turned round; its own inverse."""
    if not any(reverse):
        return v
    parts = [part.flip(0) if back else part for part, back in runs(v, reverse, 2)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def valid(inputs: Inputs) -> Tensor | None:
    """(T, B, N): which steps lie within their row's length; None if all do."""
    if inputs.lengths is None:
        return None
    steps = torch.arange(inputs.x.shape[0], device=inputs.x.device)
    return steps[:, None, None] < inputs.lengths


def fresh(inputs: Inputs) -> Tensor | None:
    """(T, B, N): which steps are entered with a zero state; None if none is.

    A reset at t parts the sequence between t - 1 and t. So a forward group enters t afresh, and a
    reversed one enters t - 1 so, if t is within the row: its first step has the initial state.
    """
    if inputs.resets is None:
        return None
    live, parts = valid(inputs), []
    resets = inputs.resets if live is None else inputs.resets & live
    for part, back in runs(resets, inputs.reverse, 2):
        parts.append(torch.cat([part[1:], torch.zeros_like(part[:1])]) if back else part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def flags(inputs: Inputs) -> Tensor | None:
    """(T, B, N), int8: FRESH where a step is entered afresh, LIVE where valid; None for neither."""
    live, afresh = valid(inputs), fresh(inputs)
    if live is None and afresh is None:
        return None
    kept = LIVE if live is None else live.to(torch.int8) * LIVE
    return kept if afresh is None else kept + afresh.to(torch.int8) * FRESH  # type: ignore


def previous(inputs: Inputs, states: Sequence[Tensor]) -> Tensor:
    """The states (S, T, B, N, H) with which each step was entered; the first S are given, each
    (T, ...)."""
    S, (T, B, N, H) = len(states), states[0].shape
    if inputs.s0 is None:
        first: Sequence[Tensor] = [inputs.x.new_zeros(1, B, N, H)] * S
    else:
        first = inputs.s0[:S].split(1)
    parts = []
    for run in zip(*(runs(v, inputs.reverse, 2) for v in (*states, *first)), strict=True):
        values, back = [v for v, _ in run], run[0][1]
        pieces: list[Tensor] = []
        for v, start in zip(values[:S], values[S:], strict=True):
            pieces += [v[1:], start] if back else [start, v[:-1]]
        parts.append(torch.cat(pieces).view(S, T, *pieces[0].shape[1:]))
    entered = parts[0] if len(parts) == 1 else torch.cat(parts, 3)
    if inputs.lengths is not None and any(inputs.reverse):
        entered = torch.where(starts(inputs)[..., None], torch.stack(tuple(first)), entered)
    afresh = fresh(inputs)
    return entered if afresh is None else entered.masked_fill(afresh[..., None], 0)


def backward_groups(inputs: Inputs) -> Tensor:
    """(N,): which groups run backward. Filled on the device, since a copy to it would wait."""
    size = inputs.x.shape[2] // len(inputs.reverse)
    return torch.cat([inputs.x.new_full((size,), v, dtype=torch.bool) for v in inputs.reverse])


def starts(inputs: Inputs) -> Tensor:
    """(T, B, N): the last valid step of each reversed group, where its time begins."""
    assert inputs.lengths is not None
    T = inputs.x.shape[0]
    steps = torch.arange(T, device=inputs.x.device)[:, None, None]
    return (steps == inputs.lengths.long().clamp(max=T) - 1) & backward_groups(inputs)
