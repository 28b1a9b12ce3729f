"""The scan in plain PyTorch: the definition, the judge of the kernels, and the fallback.

Half-precision problems are computed in float32, as the kernels do, and rounded at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..ops.sequence import Inputs, fresh, turn, valid

if TYPE_CHECKING:
    from ..dispatch import Problem

Tensors = tuple[Tensor, ...]


def why_not(problem: Problem) -> str | None:
    return None


def product(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """h @ w.T + b in each group: (..., N, H), (N, R, H) and (N, R) to (..., N, R)."""
    if w.shape[0] == 1:
        out = torch.nn.functional.linear(h[..., 0, :], w[0], None if b is None else b[0])
        return out.unsqueeze(-2)
    rows = h.flatten(0, -3).transpose(0, 1)
    out = rows @ w.mT if b is None else torch.baddbmm(b[:, None], rows, w.mT)
    return out.transpose(0, 1).unflatten(0, h.shape[:-2])


def recurrent_gates(inputs: Inputs, x: Tensors, s: Tensors, p: Tensors) -> Tensor:
    """r of every gate, (..., N, G, H), for one step or all: only the states must be known."""
    w, b, d, late = inputs.w, inputs.b, inputs.d, inputs.late
    cell, H = inputs.equations, inputs.w.shape[-1]

    def gates(q: Tensor, rows: slice) -> Tensor:
        q = q if d is None else q * d
        return product(q, w[:, rows], None if b is None else b[:, rows]).unflatten(-1, (-1, H))

    if cell.inner is None:
        return gates(s[0], slice(None))
    early = gates(s[0], slice(late * H))
    q = cell.inner.step(x[:late], early.unbind(-2), s, p)
    return torch.cat([early, gates(q, slice(late * H, None))], -2)


def fed(inputs: Inputs, x: Tensors, s: Tensors, r: Tensor) -> list[tuple[Tensor, slice]]:
    """What each recurrent product was fed over the whole sequence, and the gates it served."""
    cell, late = inputs.equations, inputs.late
    q, gates = [s[0]], [slice(late)]
    if cell.inner is not None:
        inner = cell.inner.step(x[:late], r.unbind(3)[:late], s, inputs.parameters)
        live = valid(inputs)
        # Padding may hold NaN, which a zero gradient would not silence in a product.
        q.append(inner if live is None else inner.masked_fill(~live[..., None], 0))
        gates.append(slice(late, None))
    if inputs.d is not None:
        q = [v * inputs.d for v in q]
    return list(zip(q, gates, strict=True))


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


def steps(inputs: Inputs) -> list[Tensors]:
    """x of every step in loop order: the gates, then the masks."""
    x = turn(inputs.x, inputs.reverse).unbind(0)
    if inputs.m is None:
        return [v.unbind(2) for v in x]
    masks = turn(inputs.m.to(inputs.x.dtype), inputs.reverse).unbind(0)
    return [v.unbind(2) + m.unbind(2) for v, m in zip(x, masks, strict=True)]


def flags(inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
    """Which steps are valid and which entered afresh, in loop order, (T, B, N, 1) each."""
    pair = valid(inputs), fresh(inputs)
    live, afresh = (None if v is None else turn(v, inputs.reverse)[..., None] for v in pair)
    return live, afresh


def scan(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """output (T, B, N, H), cells (S - 1, T, B, N, H) and last (S, B, N, H)."""
    dtype, inputs = inputs.x.dtype, upcast(inputs)
    cell, x, p = inputs.equations, inputs.x, inputs.parameters
    live, afresh = flags(inputs)
    shape = (cell.states, *x.shape[1:3], x.shape[-1])
    s = (x.new_zeros(shape) if inputs.s0 is None else inputs.s0).unbind(0)
    states = []
    for t, x_t in enumerate(steps(inputs)):
        if afresh is not None:
            s = tuple(v.masked_fill(afresh[t], 0) for v in s)
        r = recurrent_gates(inputs, x_t, s, p).unbind(-2)
        new = cell.step(x_t, r, s, p)
        if live is None:
            s = new
        else:
            s = tuple(torch.where(live[t], a, b) for a, b in zip(new, s, strict=True))
            new = tuple(v.masked_fill(~live[t], 0) for v in new)
        states.append(new)
    output, *cells = (
        turn(torch.stack(v), inputs.reverse).to(dtype) for v in zip(*states, strict=True)
    )
    empty = output.new_empty(0, *output.shape)
    return output, torch.stack(cells) if cells else empty, torch.stack(s).to(dtype)


def previous_gradient(
    inputs: Inputs, x: Tensors, r: Tensors, s: Tensors, p: Tensors, ds: Tensors
) -> tuple[Tensors, Tensors, Tensors, Tensors]:
    """dx, dr, ds and dp of one step, ds in full: through the cell and through r."""
    cell, late, H = inputs.equations, inputs.late, inputs.w.shape[-1]

    def through(dr: Tensors, rows: slice) -> Tensor:
        dq = product(torch.cat(dr, -1), inputs.w[:, rows].mT, None)
        return dq if inputs.d is None else dq * inputs.d

    dx, dr, ds, dp = cell.vjp(x, r, s, p, ds)
    if cell.inner is not None:
        dq = through(dr[late:], slice(late * H, None))
        dx_in, dr_in, ds_in = cell.inner.vjp(x[:late], r[:late], s, p, dq)
        dx = tuple(a + b for a, b in zip(dx[:late], dx_in, strict=True)) + dx[late:]
        dr = tuple(a + b for a, b in zip(dr[:late], dr_in, strict=True)) + dr[late:]
        ds = tuple(a + b for a, b in zip(ds, ds_in, strict=False)) + ds[len(ds_in) :]
    return dx, dr, (ds[0] + through(dr[:late], slice(late * H)), *ds[1:]), dp


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
    r: Tensor,
    doutput: Tensor | None,
    dcells: Tensor | None,
    dlast: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx and dr (T, B, N, G, H), ds0 (S, B, N, H) and dp (N, P, H)."""
    dtype, inputs = inputs.x.dtype, upcast(inputs)
    x, p, reverse = inputs.x, inputs.parameters, inputs.reverse
    T, B, N, _, H = x.shape
    live, afresh = flags(inputs)
    entered = [turn(v.to(x.dtype), reverse) for v in prev]
    arriving, x_t = arrivals(inputs, doutput, dcells), steps(inputs)
    r_t = [v.unbind(2) for v in turn(r.to(x.dtype), reverse).unbind(0)]
    dlast = x.new_zeros(inputs.equations.states, B, N, H) if dlast is None else dlast
    ds = dlast.to(x.dtype).unbind(0)
    dxs, drs, dp = [], [], tuple(torch.zeros_like(v) for v in p)
    for t in reversed(range(T)):
        total = tuple(a if b is None else a + b[t] for a, b in zip(ds, arriving, strict=True))
        s = tuple(v[t] for v in entered)
        dx, dr, old, dp_t = previous_gradient(inputs, x_t[t], r_t[t], s, p, total)
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
