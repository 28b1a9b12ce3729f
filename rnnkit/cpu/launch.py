"""From a scan's arguments to a call of the native kernels, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..native.arguments import address, dense, described, ready
from ..ops.allocate import (
    allocate,
    allocate_gradients,
    allocate_products,
)
from ..ops.sequence import Inputs
from ..projection import Projection
from .library import call, shared
from .memory import empty


def dense_projection(projection: Projection) -> Projection:
    input, *others = projection
    return Projection(input.contiguous(), *map(dense, others))  # type: ignore[arg-type]


class Kept(NamedTuple):
    """What forward keeps for backward: products, scales, and the scales of the input's norm."""

    products: Tensor
    scales: Tensor
    x_scales: Tensor | None = None


def of_projection(
    inputs: Inputs, projection: Projection | None, x_scales: Tensor | None, keep: bool = True
) -> dict[str, int]:
    """The arguments that a projection adds; x, and x_scales, are written then."""
    if projection is None:
        return {}
    input, ih, b_ih, gain = projection
    return {
        "input": address(input),
        "w_ih": address(ih),
        "b_ih": address(b_ih),
        "I": input.shape[-1],
        "x_gain": address(gain),
        "x_scales": address(x_scales),
        "summed": (added := summed(inputs)),
        "activated": keep and added > 0,
    }


def summed(inputs: Inputs) -> int:
    """The first gates whose products are added to an x that is computed here."""
    if inputs.equations.norm is not None or inputs.x.dtype == torch.bfloat16:
        return 0
    return shared(inputs.cell, inputs.x.dtype)


def room(inputs: Inputs, projection: Projection | None) -> tuple[Tensor, Tensor]:
    """Room for the products and scales that forward keeps."""
    T, B, N, G, H = inputs.x.shape
    if projection is not None and summed(inputs) > 0:
        products = empty((T, B, N, G - summed(inputs), H), inputs.x)
        return products, products.new_empty(0)
    return allocate_products(inputs.x, inputs.cell, True)


def room_for_x_scales(inputs: Inputs, projection: Projection | None) -> Tensor | None:
    """Room for the scales of the input's norm, if it has one."""
    x = inputs.x
    if projection is None or projection.gain is None:
        return None
    return x.new_empty(x.shape[:4], dtype=torch.promote_types(x.dtype, torch.float32))


def forward(
    inputs: Inputs, keep: bool, projection: Projection | None = None
) -> tuple[tuple[Tensor, Tensor, Tensor], Kept | None]:
    """output, cells and last; and if `keep`, what `backward` takes."""
    output, cells, last = allocate(inputs.x, inputs.cell)
    x_scales = room_for_x_scales(inputs, projection)  # the kernels write them in any case
    kept = Kept(*room(inputs, projection), x_scales) if keep else None
    more = of_projection(inputs, projection, x_scales, keep)
    more |= {"output": output.data_ptr(), "cells": cells.data_ptr(), "last": last.data_ptr()}
    if kept is not None:
        more |= {"products": kept.products.data_ptr(), "scales": kept.scales.data_ptr()}
    call("rnnkit_scan", inputs.cell, inputs.x.dtype, described(inputs, more))
    return (output, cells, last), kept


def backward(
    inputs: Inputs,
    states: tuple[Tensor, ...],
    kept: Kept | None,
    arriving: tuple[Tensor | None, ...],
) -> tuple[Tensor, ...]:
    """dx, dw, db, ds0 and dp."""
    found = allocate_gradients(inputs.x, inputs.w, inputs.cell)
    launch_backward(inputs, states, kept, arriving, (found[0].data_ptr(), found[1:]), {})
    return found


def forward_through(
    projection: Projection, inputs: Inputs, keep: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Sequence[Tensor | None]]:
    """A whole layer, as `rnnkit.ops.layer.Whole` has it."""
    found, kept = forward(ready(inputs), keep, dense_projection(projection))
    return found, inputs.x, kept or ()


def backward_through(
    projection: Projection,
    inputs: Inputs,
    states: tuple[Tensor, Tensor],
    kept: Sequence[Tensor | None],
    arriving: tuple[Tensor | None, ...],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of a whole layer, as `rnnkit.ops.layer.Whole` has it."""
    projection, inputs = dense_projection(projection), ready(inputs)
    every = Kept(*kept)  # type: ignore[arg-type]

    def like(v: Tensor | None, wanted: bool = True) -> Tensor | None:
        return torch.empty_like(v) if wanted and v is not None else None

    dinput = like(projection.input, wanted[0])
    of_weights = [like(v, any(wanted[1 : len(projection)])) for v in projection[1:]]
    dw, db, ds0, dp = map(like, (inputs.w, inputs.b, inputs.s0, inputs.p))
    names = ("dinput", "dw_ih", "db_ih", "dx_gain")
    more = dict(zip(names, map(address, (dinput, *of_weights)), strict=True))
    more |= of_projection(inputs, projection, every.x_scales)
    launch_backward(inputs, states, every, arriving, (0, (dw, db, ds0, dp)), more)
    return dinput, *of_weights, dw, db, ds0, dp


def launch_backward(
    inputs: Inputs,
    states: tuple[Tensor, ...],
    kept: Kept | None,
    arriving: tuple[Tensor | None, ...],
    results: tuple[int, Sequence[Tensor | None]],
    more: dict[str, int],
) -> None:
    output, cells = (v.contiguous() for v in states)
    products, scales = (None, None) if kept is None else map(dense, kept[:2])
    doutput, dcells, dlast = map(dense, arriving)
    dx, (dw, db, ds0, dp) = results
    more |= {
        "output": output.data_ptr(),
        "cells": cells.data_ptr(),
        "products": address(products),
        "scales": address(scales),
        "doutput": address(doutput),
        "dcells": address(dcells),
        "dlast": address(dlast),
        "dx": dx,
        "dw": address(dw),
        "db": address(db),
        "ds0": address(ds0),
        "dp": address(dp),
    }
    call("rnnkit_scan_backward", inputs.cell, inputs.x.dtype, described(inputs, more))
