"""A whole layer in one call: the projection of the input and the scan, forward and backward.

torch's matrix products for a projection are slower than the kernels' own at these sizes, and each
operation that autograd records costs as much as a short scan.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..native.arguments import ready
from ..ops.check import check
from ..ops.scan import scan
from ..ops.sequence import Inputs
from ..projection import Projection, with_groups
from .launch import Kept, backward_through, dense_projection, forward

COUNT = len(Projection._fields)


def layer(projection: Projection, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """output, cells and last of `rnnkit::scan`, for an x that is empty: it is computed here.

    w and b may lack the dimension of the groups, too: a view would cost more than the rest of a
    short call. Gradients come in the shapes of the arguments.
    """
    check_layer(projection, inputs)
    tensors = (*projection, *inputs[:5])
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors):
        found: tuple[Tensor, Tensor, Tensor] = Layer.apply(*projection, *inputs)
        return found
    return forward(ready(inputs), False, dense_projection(projection))[0]


def check_layer(projection: Projection, inputs: Inputs) -> None:
    """Raises unless all arguments fit together: the kernels read what they are told."""
    w, b, x = inputs.w, inputs.b, inputs.x
    _, _, N, G, H = x.shape
    plain = all(v is None for v in inputs[3:9]) and len(inputs.reverse) in (1, N)
    fit = alike(w, x, N * G * H * H) and alike(b, x, N * G * H)
    if not plain or not fit or w.shape[-2:] != (G * H, H):
        check(with_groups(inputs))
    input, ih, b_ih, gain = projection
    if ih.shape[-2:] != (G * H, input.shape[-1]) or not alike(ih, x, ih.numel()):
        shape = (N, G * H, input.shape[-1])
        raise ValueError(
            f"ih: expected (N, G*H, I) = {shape} {x.dtype} on {x.device}, got {described(ih)}"
        )
    for name, v in (("b_ih", b_ih), ("gain of the input's norm", gain)):
        if not alike(v, x, N * G * H):
            assert v is not None
            expected = (N, G * H)
            raise ValueError(f"{name}: expected (N, G*H) = {expected}, got {described(v)}")


def alike(v: Tensor | None, x: Tensor, count: int) -> bool:
    return v is None or (v.numel() == count and v.dtype == x.dtype and v.device == x.device)


def described(v: Tensor) -> str:
    return f"{tuple(v.shape)} {v.dtype} on {v.device}"


class Layer(torch.autograd.Function):
    """The layer with its gradients. Not for torch.func, whose transforms take the operator."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        projection, inputs = Projection(*given[:COUNT]), Inputs(*given[COUNT:])
        found, kept = forward(ready(inputs), True, dense_projection(projection))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*found[:2], *(kept or ()), *given[:-2])
        ctx.static = given[-2:]
        return found

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        output, cells, products, scales, x_scales, *given = ctx.saved_tensors
        projection, inputs = Projection(*given[:COUNT]), Inputs(*given[COUNT:], *ctx.static)
        needed = ctx.needs_input_grad
        if all(v is None for v in arriving):
            return (None,) * len(needed)
        if torch.is_grad_enabled() or mapped(arriving):
            return differentiable_gradients(needed, projection, inputs, arriving)
        with dispatch.plain_arithmetic(output.device):
            found = backward_through(
                dense_projection(projection),
                (needed[0], any(needed[1:COUNT])),
                ready(inputs),
                (output, cells),
                Kept(products, scales, x_scales),
                arriving,
            )
        of_scan = (None, *found[COUNT:])  # nobody wants dx
        none = (None,) * (len(needed) - COUNT - len(of_scan))
        every = (*found[:COUNT], *of_scan, *none)
        return tuple(v if want else None for v, want in zip(every, needed, strict=True))


def mapped(arriving: tuple[Tensor | None, ...]) -> bool:
    """Whether a transform maps over this backward, which operators know and kernels do not."""
    legacy = torch._C._functorch.is_legacy_batchedtensor
    every = [v for v in arriving if v is not None]
    return torch._C._are_functorch_transforms_active() or any(map(legacy, every))


def differentiable_gradients(
    needed: tuple[bool, ...],
    projection: Projection,
    inputs: Inputs,
    arriving: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """The gradients where they will be differentiated again: by torch's operations and the scan."""
    # Views, so that what reaches one argument through another's own history does not count twice.
    with torch.enable_grad():
        values: Any = [v.view_as(v) if isinstance(v, Tensor) else v for v in (*projection, *inputs)]
    projection, inputs = Projection(*values[:COUNT]), Inputs(*values[COUNT:])
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        x = projection.x(inputs.equations, inputs.x.shape)
        found = scan(*with_groups(inputs._replace(x=x)))
    pairs = [(v, d) for v, d in zip(found, arriving, strict=True) if d is not None]
    outputs, cotangents = zip(*pairs, strict=True)
    wanted = [k for k, want in enumerate(needed) if want]
    gradients = torch.autograd.grad(
        outputs, [values[k] for k in wanted], cotangents, create_graph=again, allow_unused=True
    )
    by_place = dict(zip(wanted, gradients, strict=True))
    return tuple(by_place.get(k) for k in range(len(values)))
