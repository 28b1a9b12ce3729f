"""What is parallel in time of a scan's backward: recomputing r, and the weights' gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..reference.products import before_norm, fed, recurrent_gates
from .sequence import Inputs, previous, products, runs, valid

# db is None where there is no bias.
Gradients = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]
# A backend's: dx, dr, ds0 and dp.
ScanBackward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


def gradients(
    scan_backward: ScanBackward,
    inputs: Inputs,
    states: tuple[Tensor, ...],
    arriving: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> Gradients:
    """dx, dw, db, ds0 and dp: all that is parallel in time here, the rest in scan_backward."""
    prev, n, scale = products_again(inputs, states)
    q = fed(inputs, seen_gates(inputs), prev.unbind(0), n)
    dx, dr, ds0, dp = scan_backward(inputs, prev, n, scale, *arriving)
    db = of_bias(inputs, dr)
    if scale is not None:
        dx, dr, dp = through_norm(inputs, n, scale, dx, dr, dp)
    pairs = [(dr[:, :, :, k], v) for k, v in zip(products(inputs), q, strict=True)]
    if scale is not None and dr.dtype == torch.float16:
        # The norm of a zero product has the slope 1 / sqrt(eps), with which float16 overflows; but
        # what was fed nothing adds nothing.
        pairs = [(v.masked_fill(~fed_any(k), 0), k) for v, k in pairs]
    dw = contract(*pairs[0]) if len(pairs) == 1 else torch.cat([contract(*v) for v in pairs], 1)
    return dx, dw, db, ds0, dp


def every_gradient(
    backend: Any,
    inputs: Inputs,
    states: tuple[Tensor, Tensor],
    kept: tuple[Tensor, Tensor] | None,
    arriving: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> Gradients:
    """`gradients`, or what a backend has in its place; states: output and cells."""
    if hasattr(backend, "gradients"):
        dx, dw, db, ds0, dp = backend.gradients(inputs, states, kept, arriving)
        return dx, dw, db, ds0, dp
    every = states[0], *states[1].unbind()
    return gradients(backend.scan_backward, inputs, every, arriving)


def products_again(
    inputs: Inputs, states: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The states with which every step was entered, and `recurrent_gates` of all steps."""
    prev = previous(inputs, states)
    return prev, *recurrent_gates(inputs, seen_gates(inputs), prev.unbind(0))


def seen_gates(inputs: Inputs) -> tuple[Tensor, ...]:
    """x of every gate where the products see it: of an inner step, or in the sum that is normed."""
    cell = inputs.equations
    seen = cell.inner is not None or (cell.norm is not None and cell.norm.of_sum)
    return inputs.x.unbind(3) if seen else ()


def fed_any(q: Tensor) -> Tensor:
    """(..., N, 1, 1): where any of q's H units is not zero."""
    return q.any(-1)[..., None, None]


def through_norm(
    inputs: Inputs, n: Tensor, scale: Tensor, dx: Tensor, dr: Tensor, dp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, the products' gradient and dp, given the gradients of what the step sees."""
    norm, live, dtype = inputs.equations.norm, valid(inputs), dr.dtype
    if live is not None:
        # Padding may hold NaN, which a zero gradient would not silence in a product.
        n, scale = (v.masked_fill(~live[..., None, None], 0) for v in (n, scale))
    n, dr = n.to(scale.dtype), dr.to(scale.dtype)
    dgain = (dr * n).sum((0, 1)).to(dtype)
    dv = [before_norm(inputs, dr[:, :, :, k], n, scale, k) for k in products(inputs)]
    before = torch.cat(dv, 3).to(dtype)
    dx = before if norm is not None and norm.of_sum else dx
    return dx, before, torch.cat([dgain, dp], 1)


def of_bias(inputs: Inputs, dr: Tensor) -> Tensor | None:
    """The gradient (N, G * H) of the recurrent bias, if there is one."""
    return None if inputs.b is None else dr.sum((0, 1)).flatten(1)


def contract(dr: Tensor, q: Tensor) -> Tensor:
    """The gradient (N, G * H, H) of weights that met q (T, B, N, H) and got dr (T, B, N, G, H)."""
    if dr.shape[2] == 1:
        return (dr.flatten(3).flatten(0, 2).mT @ q.flatten(0, 2)).unsqueeze(0)
    rows = dr.flatten(3).flatten(0, 1).transpose(0, 1)
    return rows.mT @ q.flatten(0, 1).transpose(0, 1)


def contract_states(inputs: Inputs, dr: Tensor, output: Tensor) -> Tensor:
    """The same of weights that met h, of which output has every step's, of a cell without an inner
    step.
    """
    starts_anywhere = inputs.lengths is not None and any(inputs.reverse)
    if inputs.d is not None or inputs.resets is not None or starts_anywhere:
        (h,) = previous(inputs, (output,))
        return contract(dr, h if inputs.d is None else h * inputs.d)
    found, values = [], (dr, output) if inputs.s0 is None else (dr, output, inputs.s0[:1])
    for (step, back), (h, _), *first in zip(
        *(runs(v, inputs.reverse, 2) for v in values), strict=True
    ):
        dw = contract(step[:-1], h[1:]) if back else contract(step[1:], h[:-1])
        for h0, _ in first:
            dw = dw + contract(step[-1:] if back else step[:1], h0)
        found.append(dw)
    return found[0] if len(found) == 1 else torch.cat(found)
