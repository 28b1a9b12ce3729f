"""The scan in plain PyTorch: the definition, the judge of the kernels, and the fallback.

Half-precision problems are computed in float32, as the kernels do, and rounded at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..ops.sequence import Inputs, fresh, turn, valid
from .products import Tensors, recurrent_gates, seen, through_products

if TYPE_CHECKING:
    from ..dispatch import Problem


def why_not(problem: Problem) -> str | None:
    return None


def upcast(inputs: Inputs) -> Inputs:
    """The same inputs in the precision in which the reference computes."""
    if inputs.x.dtype.itemsize > 2:
        return inputs
    tensors: dict[str, Any] = {
        name: value.float()
        for name, value in inputs._asdict().items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    return inputs._replace(**tensors)


def steps(inputs: Inputs) -> list[tuple[Tensors, Tensors]]:
    """x of every gate, and the masks of the states, of every step in loop order."""
    x = [v.unbind(2) for v in turn(inputs.x, inputs.reverse).unbind(0)]
    if inputs.m is None:
        return [(v, ()) for v in x]
    masks = turn(inputs.m.to(inputs.x.dtype), inputs.reverse).unbind(0)
    return [(v, m.unbind(2)) for v, m in zip(x, masks, strict=True)]


def flags(inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
    """Which steps are valid and which entered afresh, in loop order, (T, B, N, 1) each."""
    pair = valid(inputs), fresh(inputs)
    live, afresh = (None if v is None else turn(v, inputs.reverse)[..., None] for v in pair)
    return live, afresh


def advance(
    inputs: Inputs, s: Tensors, x: Tensors, m: Tensors, live: Tensor | None, afresh: Tensor | None
) -> tuple[Tensors, Tensors]:
    """One step: the states after it, and those that it shows, which are zero past a row's end."""
    cell, every = inputs.equations, slice(0, inputs.x.shape[3])
    if afresh is not None:
        s = tuple(v.masked_fill(afresh, 0) for v in s)
    n, _ = recurrent_gates(inputs, x, s)
    new = cell.step(*seen(inputs, x, n, every), s, inputs.parameters)
    new = keep(m, s, new) + new[len(m) :]
    if live is None:
        return new, new
    shown = tuple(v.masked_fill(~live, 0) for v in new)
    return tuple(torch.where(live, a, b) for a, b in zip(new, s, strict=True)), shown


def initial(inputs: Inputs) -> Tensors:
    """The states before the first step, each (B, N, H)."""
    x, states = inputs.x, inputs.equations.states
    s0 = x.new_zeros(states, *x.shape[1:3], x.shape[-1]) if inputs.s0 is None else inputs.s0
    return s0.unbind(0)


def results(
    inputs: Inputs, shown: Sequence[Tensor], s: Tensors, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """output, cells and last: of each state, all that was shown (T, B, N, H) in loop order."""
    output, *cells = (turn(v, inputs.reverse).to(dtype) for v in shown)
    empty = output.new_empty(0, *output.shape)
    return output, torch.stack(cells) if cells else empty, torch.stack(s).to(dtype)


def scan(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """output (T, B, N, H), cells (S - 1, T, B, N, H) and last (S, B, N, H)."""
    dtype, inputs = inputs.x.dtype, upcast(inputs)
    live, afresh = flags(inputs)
    s, states = initial(inputs), []
    for t, (x, m) in enumerate(steps(inputs)):
        flag = (None if v is None else v[t] for v in (live, afresh))
        s, shown = advance(inputs, s, x, m, *flag)
        states.append(shown)
    return results(inputs, [torch.stack(v) for v in zip(*states, strict=True)], s, dtype)


def keep(m: Tensors, old: Tensors, new: Tensors) -> Tensors:
    """The states of which a share m of the old one stays (zoneout)."""
    return tuple(k * a + (1 - k) * b for k, a, b in zip(m, old, new, strict=False))


def previous_gradient(
    inputs: Inputs, x: Tensors, m: Tensors, n: Tensor, scale: Tensor | None, s: Tensors, ds: Tensors
) -> tuple[Tensors, Tensors, Tensors, Tensors]:
    """dx, dr, ds and dp of one step, ds in full: through the cell and through the products."""
    new = tuple((1 - k) * v for k, v in zip(m, ds, strict=False)) + ds[len(m) :]
    every, p = slice(0, inputs.x.shape[3]), inputs.parameters
    dx, dr, old, dp = inputs.equations.vjp(*seen(inputs, x, n, every), s, p, new)
    old = tuple(k * a + b for k, a, b in zip(m, ds, old, strict=False)) + old[len(m) :]
    dx, dr, old = through_products(inputs, x, n, scale, s, dx, dr, old)
    return dx, dr, old, dp


def arrivals(inputs: Inputs, doutput: Tensor | None, dcells: Tensor | None) -> list[Tensor | None]:
    """The gradient that each state of each step gets from outside, in loop order."""
    others = [None] * (inputs.equations.states - 1) if dcells is None else dcells.unbind(0)
    return [
        None if v is None else turn(v.to(inputs.x.dtype), inputs.reverse)
        for v in (doutput, *others)
    ]


def hide(values: Tensors, hidden: Tensor | None) -> Tensors:
    """The values, with zeros where hidden."""
    return values if hidden is None else tuple(v.masked_fill(hidden, 0) for v in values)


def scan_backward(
    inputs: Inputs,
    prev: Tensor,
    n: Tensor,
    scale: Tensor | None,
    doutput: Tensor | None,
    dcells: Tensor | None,
    dlast: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of what the step sees, its x and r (T, B, N, G, H); ds0 (S, B, N, H); and dp
    (N, P, H) of the step's parameters. n and scale are `recurrent_gates` of all steps.
    """
    dtype, inputs = inputs.x.dtype, upcast(inputs)
    x, p, reverse = inputs.x, inputs.parameters, inputs.reverse
    T, B, N, _, H = x.shape
    live, afresh = flags(inputs)
    entered = [turn(v.to(x.dtype), reverse) for v in prev]
    arriving, x_t = arrivals(inputs, doutput, dcells), steps(inputs)
    n_t = turn(n.to(x.dtype), reverse).unbind(0)
    scale_t = [None] * T if scale is None else turn(scale, reverse).unbind(0)
    dlast = x.new_zeros(inputs.equations.states, B, N, H) if dlast is None else dlast
    ds = dlast.to(x.dtype).unbind(0)
    dxs, drs, dp = [], [], tuple(torch.zeros_like(v) for v in p)
    for t in reversed(range(T)):
        total = tuple(a if b is None else a + b[t] for a, b in zip(ds, arriving, strict=True))
        s = tuple(v[t] for v in entered)
        dx, dr, old, dp_t = previous_gradient(inputs, *x_t[t], n_t[t], scale_t[t], s, total)
        old = old if afresh is None else hide(old, afresh[t])
        if live is not None:
            dx, dr, dp_t = (hide(v, ~live[t]) for v in (dx, dr, dp_t))
            old = tuple(torch.where(live[t], a, b) for a, b in zip(old, ds, strict=True))
        dp = tuple(a + v.sum(0) for a, v in zip(dp, dp_t, strict=True))
        dxs.append(torch.stack(dx, 2))
        drs.append(torch.stack(dr, 2))
        ds = old
    dx_all, dr_all = (turn(torch.stack(v[::-1]), reverse).to(dtype) for v in (dxs, drs))
    dp_all = torch.stack(dp, 1) if dp else x.new_zeros(N, 0, H)
    return dx_all, dr_all, torch.stack(ds).to(dtype), dp_all.to(dtype)
