"""A whole layer in one call: the projection of the input and the scan, forward and backward.

torch's matrix products for a projection are slower than the kernels' own at these sizes, and each
operation that autograd records costs as much as a short scan.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..ops.scan import scan
from ..ops.sequence import Inputs
from ..projection import with_groups
from .launch import Projection, backward_through, forward, ready


def layer(
    input: Tensor, ih: Tensor, b_ih: Tensor | None, inputs: Inputs
) -> tuple[Tensor, Tensor, Tensor]:
    """output, cells and last of `rnnkit::scan`, for an x that is empty: it is computed here.

    input (T, B, I), ih (N, G * H, I), b_ih (N, G * H): x = input @ ih.T + b_ih. The dimension of
    one group may be absent in these and in the inputs' w and b, whose gradients come so too: a view
    would cost more than the rest of a short call.
    """
    projection = Projection(input, ih, b_ih)
    tensors = (*projection, *inputs[:5])
    keep = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors)
    if not keep:
        return forward(ready(inputs), False, dense(projection))[0]
    found: tuple[Tensor, Tensor, Tensor] = Layer.apply(*projection, *inputs)
    return found


def dense(projection: Projection) -> Projection:
    input, ih, b_ih = projection
    return Projection(
        input.contiguous(), ih.contiguous(), None if b_ih is None else b_ih.contiguous()
    )


class Layer(torch.autograd.Function):
    """The layer with its gradients. Not for torch.func, whose transforms take the operator."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, input: Tensor, ih: Tensor, b_ih: Tensor | None, *given: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs, projection = ready(Inputs(*given)), dense(Projection(input, ih, b_ih))
        found, kept = forward(inputs, True, projection)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*found[:2], *(kept or ()), input, ih, b_ih, *given[:-2])
        ctx.static = given[-2:]
        return found

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        output, cells, products, scales, input, ih, b_ih, *given = ctx.saved_tensors
        projection, inputs = Projection(input, ih, b_ih), Inputs(*given, *ctx.static)
        none = (None,) * len(ctx.needs_input_grad)
        if all(v is None for v in arriving):
            return none
        if torch.is_grad_enabled():
            return differentiable_gradients(ctx, projection, inputs, arriving)
        needed = ctx.needs_input_grad
        with dispatch.plain_arithmetic(input.device):
            dinput, dih, db_ih, *of_scan = backward_through(
                dense(projection),
                (needed[0], needed[1] or needed[2]),
                ready(inputs),
                (output, cells),
                (products, scales),
                arriving,
            )
        found = (dinput, dih, db_ih, None, *of_scan, *none[8:])
        # No gradient goes to what was absent.
        return tuple(v if want else None for v, want in zip(found, needed, strict=True))


def differentiable_gradients(
    ctx: Any, projection: Projection, inputs: Inputs, arriving: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients where they will be differentiated again: those of torch's product and scan."""
    input, ih, b_ih = projection
    x = torch.nn.functional.linear(
        input, ih.flatten(0, -2), None if b_ih is None else b_ih.flatten()
    )
    found = scan(*with_groups(inputs._replace(x=x.view(inputs.x.shape))))
    outputs, cotangents = zip(
        *((v, d) for v, d in zip(found, arriving, strict=True) if d is not None), strict=True
    )
    values = (*projection, *inputs)
    wanted = [k for k, needed in enumerate(ctx.needs_input_grad) if needed]
    gradients = torch.autograd.grad(
        outputs, [values[k] for k in wanted], cotangents, create_graph=True, allow_unused=True
    )
    result: list[Tensor | None] = [None] * len(values)
    for k, value in zip(wanted, gradients, strict=True):
        result[k] = value
    return tuple(result)
