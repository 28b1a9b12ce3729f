"""The stepwise form of the scan: where weights do not fit on chip, each step is the recurrent
products, the norm and the inner step in torch, and one launch of the kernel for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops.sequence import Inputs, fresh, runs, valid
from ..precision import precision_of
from ..reference.products import recurrent_gates, through_products
from .arguments import Launch
from .product import product


def forward(inputs: Inputs, launch: Launch) -> None:
    """The forward scan a step at a time: the recurrent products, then the gates."""
    state, x, afresh = launch.tensors.last, inputs.x, fresh(inputs)
    by_tiles = partial(product, precision=precision_of(x.dtype))
    # Only an inner step, or a norm of the sum, needs x for the products.
    of_sum = inputs.equations.norm is not None and inputs.equations.norm.of_sum
    for k in range(x.shape[0]):
        s = state.to(x.dtype)
        if afresh is not None:
            s = s.masked_fill(at_step(afresh, inputs.reverse, k)[..., None], 0)
        reads_x = of_sum or inputs.equations.inner is not None
        gates = at_step(x, inputs.reverse, k).unbind(2) if reads_x else ()
        r, _ = recurrent_gates(inputs, gates, s.unbind(0), by_tiles)
        launch.go(first=k, r=r.contiguous())


def backward(inputs: Inputs, launch: Launch, n: Tensor, scale: Tensor | None) -> None:
    """The backward scan a step at a time: the gates, then the products."""
    tensors, ds = launch.tensors, launch.tensors.ds0
    afresh, live, cell = fresh(inputs), valid(inputs), inputs.equations
    padding = None if live is None else ~live
    parted = padding if afresh is None else afresh if padding is None else afresh | padding
    gradients = (tensors.dx,) if tensors.dr is None else (tensors.dx, tensors.dr)

    def at(v: Tensor | None, k: int) -> Tensor | None:
        return None if v is None else at_step(v, inputs.reverse, k)

    for k in reversed(range(inputs.x.shape[0])):
        launch.go(first=k)
        found = [at_step(v, inputs.reverse, k) for v in gradients]
        x, s = ((), ()) if cell.inner is None else entered(inputs, tensors.prev, k)
        dx, dr = found[0].unbind(2), found[-1].unbind(2)
        zero: Any = (0,) * cell.states
        n_k: Any = at(n, k) if cell.norm is not None or cell.inner is not None else None
        dx, dr, more = through_products(inputs, x, n_k, at(scale, k), s, dx, dr, zero)
        for v, new in zip(gradients if cell.inner is not None else (), (dx, dr), strict=False):
            put_step(v, inputs.reverse, k, hide(torch.stack(new, 2), at(padding, k)))
        for v, new in zip(ds, more, strict=True):
            if isinstance(new, Tensor):
                v += hide(new, at(parted, k))


def entered(inputs: Inputs, prev: Tensor, k: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The gates' x and the states with which each group enters its own k-th step."""
    x = at_step(inputs.x, inputs.reverse, k).unbind(2)
    return x, tuple(at_step(v, inputs.reverse, k) for v in prev)


def hide(v: Tensor, hidden: Tensor | None) -> Tensor:
    """v (B, N, ...) with zeros where hidden (B, N)."""
    return v if hidden is None else v.masked_fill(hidden[(..., *[None] * (v.dim() - 2))], 0)


def put_step(v: Tensor, reverse: Sequence[bool], k: int, value: Tensor) -> None:
    """Sets what `at_step` gets."""
    last = v.shape[0] - 1
    parts = zip(runs(v, reverse, 2), runs(value, reverse, 1), strict=True)
    for (part, back), (new, _) in parts:
        part[last - k if back else k] = new


def at_step(v: Tensor, reverse: Sequence[bool], k: int) -> Tensor:
    """What each group of v (T, B, N, ...) holds at the group's own k-th step."""
    last = v.shape[0] - 1
    parts = [part[last - k if back else k] for part, back in runs(v, reverse, 2)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
