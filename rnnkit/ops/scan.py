"""`rnnkit::scan` and `rnnkit::scan_backward`: the only recurrent operator, for every cell.

Dimensions: T time, B batch, N groups, G gates, H units of a group, S states of the cell, P rows of
its parameters, E states that have a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..reference import scan as reference
from .allocate import allocate, allocate_gradients, allocate_products, empty_gradients
from .check import check
from .gradients import Gradients, every_gradient, gradients, products_again
from .sequence import Inputs, valid
from .transforms import differentiable, fold, pull_back, unfold

# Where the group (or the batch) dimension of each argument stands: vmap folds into it.
GROUP = {"x": 2, "w": 0, "b": 0, "s0": 2, "p": 0, "m": 2, "d": 1, "lengths": 1, "resets": 2}
BATCH = {"x": 1, "s0": 1, "m": 1, "d": 0, "lengths": 0, "resets": 1}
SHARED = ("w", "b", "p")
STATES = ("output", "cells", "last")
KEPT = ("products", "scales")
# The same for what the operators return and for what backward takes beside the inputs.
GROUP |= {"output": 2, "cells": 3, "last": 2, "dx": 2, "dw": 0, "db": 0, "ds0": 2, "dp": 0}
BATCH |= {"output": 1, "cells": 2, "last": 1, "products": 1, "scales": 1}
GROUP |= {"products": 2, "scales": 2}
GRADIENTS = ("dx", "dw", "db", "ds0", "dp")


def scan(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    s0: Tensor | None = None,
    p: Tensor | None = None,
    m: Tensor | None = None,
    d: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    cell: str = "lstm",
    reverse: Sequence[bool] = (False,),
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a cell over a sequence: s = step(x[t], h @ w.T + b, s, p) for every t.

    Args:
        x: (T, B, N, G, H), the input's part of every gate.
        w: (N, G * H, H), the recurrent weights, gates in the cell's order.
        b: (N, G * H), the recurrent biases; None means zero. A cell's norm comes before them.
        s0: (S, B, N, H), the initial states, h first; None means zero.
        p: (N, P, H), the cell's own parameters (gains, peepholes); None if it has none.
        m: (T, B, N, E, H), in [0, 1]: the share of the old state that stays, of the first E states
            (zoneout); no gradient.
        d: (B, N, H), multiplies h before every recurrent product (recurrent dropout); no gradient.
        lengths: (B, N), integer: a row past its length keeps its states and outputs zero. A
            reversed group starts at its row's last valid step.
        resets: (T, B, N), bool: the row's sequence is parted before step t, where a new one begins
            with a zero state. (A reversed group so enters step t - 1 with a zero state.)
        cell: the name of a registered cell.
        reverse: the directions of len(reverse) equal runs of groups; True runs backward in time.

    All floating-point tensors share x's dtype and device, except m and d, whose dtype is free.

    Returns:
        output (T, B, N, H), h of every step; cells (S - 1, T, B, N, H), the other states of every
        step; last (S, B, N, H), the final states. Output and cells are zero past a row's length.
    """
    inputs = Inputs(x, w, b, s0, p, m, d, lengths, resets, cell, tuple(reverse))
    check(inputs)
    output, cells, last, _, _ = _scan(*inputs, dispatch.keeps(inputs))
    return output, cells, last


@torch.library.custom_op("rnnkit::scan", mutates_args=())
def _scan_op(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    s0: Tensor | None,
    p: Tensor | None,
    m: Tensor | None,
    d: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    cell: str,
    reverse: Sequence[bool],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns products and scales besides: kept for backward, or empty (`allocate_products`)."""
    inputs = given(x, w, b, s0, p, m, d, lengths, resets, cell, reverse)
    if x.numel() == 0:
        output, cells, last = allocate(x, cell)
        last = last.zero_() if s0 is None else last.copy_(s0)
        return output, cells, last, *allocate_products(x, cell, keep)
    with dispatch.plain_arithmetic(x.device):
        backend = dispatch.choose(inputs)
        if keep and getattr(backend, "KEEPS", False):
            return backend.scan(inputs, keep)
        output, cells, last = backend.scan(inputs)
        products, scales = allocate_products(x, cell, keep)
        if keep:
            _, n, scale = products_again(inputs, (output, *cells))
            products.copy_(n)
            if scale is not None:
                scales.copy_(scale[..., 0])
        return output, cells, last, products, scales


@_scan_op.register_fake
def _(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return *allocate(x, args[-3]), *allocate_products(x, args[-3], args[-1])


@torch.library.custom_op("rnnkit::scan_backward", mutates_args=())
def _scan_backward_op(
    doutput: Tensor | None,
    dcells: Tensor | None,
    dlast: Tensor | None,
    output: Tensor,
    cells: Tensor,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    s0: Tensor | None,
    p: Tensor | None,
    m: Tensor | None,
    d: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    products: Tensor | None,
    scales: Tensor | None,
    cell: str,
    reverse: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = given(x, w, b, s0, p, m, d, lengths, resets, cell, reverse)
    if x.numel() == 0:
        return empty_gradients(inputs, dlast)
    with dispatch.plain_arithmetic(x.device):
        backend = dispatch.choose(inputs, backward=True)
        kept = None if products is None or scales is None else (products, scales)
        arriving = doutput, dcells, dlast
        return filled(inputs, every_gradient(backend, inputs, (output, cells), kept, arriving))


@_scan_backward_op.register_fake
def _(
    doutput: Tensor | None,
    dcells: Tensor | None,
    dlast: Tensor | None,
    output: Tensor,
    cells: Tensor,
    x: Tensor,
    w: Tensor,
    *args: Any,
) -> tuple[Tensor, ...]:
    return allocate_gradients(x, w, args[-2])


def filled(inputs: Inputs, found: Gradients) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients as an operator returns them, with zeros in the place of a db that is not there.

    Autograd reads none of these, so who calls no operator does not make them.
    """
    dx, dw, db, ds0, dp = found
    return dx, dw, dw.new_zeros(dw.shape[:2]) if db is None else db, ds0, dp


def given(*values: Any) -> Inputs:
    """The operator's arguments as backends take them: d comes in any dtype."""
    inputs = Inputs(*values)
    return inputs if inputs.d is None else inputs._replace(d=inputs.d.to(inputs.x.dtype))


def forward_mode(*values: Any) -> tuple[Tensor, ...]:
    """The scan where inputs may have tangents: the reference, differentiated by torch itself."""
    inputs = given(*values[:-1])
    dispatch.choose(inputs)  # refuses a forced backend that is not the reference
    kept = allocate_products(inputs.x, inputs.cell, False)
    if inputs.x.numel() == 0:
        output, cells, last = allocate(inputs.x, inputs.cell)
        last = last.zero_() if inputs.s0 is None else inputs.s0.clone()
        return output, cells, last, *kept
    with dispatch.plain_arithmetic(inputs.x.device):
        return *reference.scan(inputs), *kept


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *values, keep = inputs
    call = Inputs(*values)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[:2], *call[:-2], *(output[3:] if keep else (None, None)))
    ctx.static = call[-2:]
    ctx.given = [value is not None for value in (call.x, call.w, call.b, call.s0, call.p)]


def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    none = (None,) * (len(Inputs._fields) + 1)
    arriving = arriving[: len(STATES)]  # what is kept for backward has no gradient
    if all(v is None for v in arriving):
        return none
    found = _scan_backward(*arriving, *ctx.saved_tensors, *ctx.static)
    wanted = [v if given else None for v, given in zip(found, ctx.given, strict=True)]
    return (*wanted, *none[len(wanted) :])


def backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:-2])
    ctx.static = inputs[-2:]


def double_backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiates the reference's explicit backward, so that any order is right."""

    def formula(*saved: Any) -> tuple[Tensor, ...]:
        inputs = given(*saved[5:-2], *ctx.static)  # the last two are kept products
        live = valid(inputs)
        if live is not None:
            # Padding may hold NaN, which the derivative of masking it afterwards would let through.
            inputs = inputs._replace(x=inputs.x.masked_fill(~live[..., None, None], 0))
        if inputs.x.numel() == 0:
            return empty_gradients(inputs, saved[2])
        states, cotangents = (saved[3], *saved[4]), (saved[0], saved[1], saved[2])
        return filled(inputs, gradients(reference.scan_backward, inputs, states, cotangents))

    # The first ten may have a gradient: three cotangents, two states, and x w b s0 p.
    return (*pull_back(formula, ctx.saved_tensors, arriving, 10), None, None)


def vmap(info: Any, axes: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    """Folds the mapped dimension into the batch where the weights are shared, else the groups."""
    call = dict(zip((*Inputs._fields, "keep"), args, strict=True))
    mapped = dict(zip(call, axes, strict=True))
    shared = all(mapped[name] is None for name in SHARED)
    places = BATCH if shared else GROUP
    folded = [
        fold(value, mapped[name], info.batch_size, places[name]) if name in places else value
        for name, value in call.items()
    ]
    names = (*STATES, *KEPT)
    spread = zip(_scan(*folded), names, strict=True)
    out = tuple(unfold(value, info.batch_size, places[name]) for value, name in spread)
    return out, tuple(places[name] + 1 for name in names)


def backward_vmap(info: Any, axes: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    """Always folds into the groups: each mapped call has its own weight gradient."""
    names = (*STATES, "output", "cells", *Inputs._fields[:-2], *KEPT, *Inputs._fields[-2:])
    folded = [
        fold(value, axis, info.batch_size, GROUP[name]) if name in GROUP else value
        for value, axis, name in zip(args, axes, names, strict=True)
    ]
    spread = zip(_scan_backward(*folded), GRADIENTS, strict=True)
    out = tuple(unfold(value, info.batch_size, GROUP[name]) for value, name in spread)
    return out, tuple(GROUP[name] + 1 for name in GRADIENTS)


_scan = differentiable(_scan_op, setup_context, backward, vmap, forward_mode)
_scan_backward = differentiable(
    _scan_backward_op, backward_setup_context, double_backward, backward_vmap
)
