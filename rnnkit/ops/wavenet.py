"""`rnnkit::wavenet` and `rnnkit::wavenet_backward`: a stack of WaveNet's residual blocks.

Dimensions: N batch, C channels, L time, D blocks, R blocks that hand something on, K taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..reference import wavenet as reference
from ..torch_kernels import wavenet as torch_kernels
from .blocks import Blocks, allocate, allocate_gradients, cast, check, check_alike
from .convolution import dtype_of
from .transforms import differentiable, fold, one_by_one, pull_back, unfold


def wavenet(
    x: Tensor,
    w: Sequence[Tensor],
    b: Sequence[Tensor],
    r: Sequence[Tensor],
    rb: Sequence[Tensor],
    condition: Tensor | None = None,
    dilations: Sequence[int] = (1,),
) -> tuple[Sequence[Tensor], Tensor]:
    """D residual blocks: z = tanh(f) * sigmoid(g), [f; g] = w * x + b + condition; x + r z + rb
    goes on to the next block.

    van den Oord et al.: "WaveNet", 2016 (arXiv:1609.03499), equations 2 and 3, figure 3.

    Args:
        x: (N, C, L).
        w, b: of each block (2C, C, K) and (2C,): the dilated causal convolution.
        r, rb: (C, C) and (C,), of each block, or of all but the last, which then hands nothing on.
        condition: (N, D * 2C, L), or (N, D * 2C, 1) for all of time; None means zero.
        dilations: of each block.

    Returns:
        xs, what each block hands on, each (N, C, L); z (N, D * C, L), all blocks' gates. Backward
        reads them, so that to change them in place is an error.

    Raises ValueError or TypeError, naming the argument.
    """
    check(x, w, b, r, rb, condition, dilations)
    dtype = dtype_of(x)
    if dispatch.on_torch(problem_of(x, w, dilations, extras=())._replace(dtype=dtype), x):
        return torch_kernels.wavenet(x, w, b, r, rb, condition, dilations)
    blocks = Blocks(x, *stacked(x, w, b, r, rb), condition, tuple(dilations))
    if dispatch.autocasts(x.device):
        blocks = cast(blocks, dtype)
    check_alike(blocks)
    xs, z = _wavenet(*blocks)
    return xs.unbind(0), z


def stacked(
    x: Tensor, w: Sequence[Tensor], b: Sequence[Tensor], r: Sequence[Tensor], rb: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each kind of parameter in one tensor."""
    C = x.shape[1]
    onward = (torch.stack(list(r)), torch.stack(list(rb))) if r else None
    none = (x.new_empty(0, C, C), x.new_empty(0, C))
    return torch.stack(list(w)), torch.stack(list(b)), *(onward or none)


def problem_of(
    x: Tensor,
    w: Sequence[Tensor] | Tensor,
    dilations: Sequence[int],
    backward: bool = False,
    extras: Any = None,
) -> dispatch.LayerProblem:
    (N, C, L), K = x.shape, w[0].shape[2]
    sizes = {"N": N, "C": C, "K": K, "L": L, "blocks": len(w), "dilation": max(dilations)}
    dual = dispatch.in_forward_mode()
    return dispatch.LayerProblem(
        "wavenet", tuple(sizes.items()), None, x.dtype, x.device, backward, dual, extras
    )


@torch.library.custom_op("rnnkit::wavenet", mutates_args=())
def _op(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    r: Tensor,
    rb: Tensor,
    condition: Tensor | None,
    dilations: Sequence[int],
) -> tuple[Tensor, Tensor]:
    blocks = Blocks(x, w, b, r, rb, condition, dilations)
    if x.numel() == 0:
        return allocate(blocks)
    with dispatch.plain_arithmetic(x.device):
        return dispatch.settle(problem_of(x, w, dilations)).wavenet(blocks)


@_op.register_fake
def _(*args: Any) -> tuple[Tensor, Tensor]:
    return allocate(Blocks(*args))


@torch.library.custom_op("rnnkit::wavenet_backward", mutates_args=())
def _backward_op(
    dxs: Tensor | None,
    dz: Tensor | None,
    xs: Tensor,
    z: Tensor,
    x: Tensor,
    w: Tensor,
    b: Tensor,
    r: Tensor,
    rb: Tensor,
    condition: Tensor | None,
    dilations: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    blocks = Blocks(x, w, b, r, rb, condition, dilations)
    if x.numel() == 0:
        dx, dw, db, dr, drb, dcondition = (v.zero_() for v in allocate_gradients(blocks))
        return dx, dw, db, dr, drb, dcondition
    with dispatch.plain_arithmetic(x.device):
        backend = dispatch.settle(problem_of(x, w, dilations, backward=True))
        return backend.wavenet_backward(blocks, xs, z, dxs, dz)


@_backward_op.register_fake
def _(dxs: Any, dz: Any, xs: Tensor, z: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return allocate_gradients(Blocks(*args))


def forward_mode(*values: Any) -> tuple[Tensor, Tensor]:
    """The blocks where inputs may have tangents: torch's, differentiated by torch itself."""
    blocks = Blocks(*values)
    dispatch.settle(problem_of(blocks.x, blocks.w, blocks.dilations))  # refuses a forced triton
    xs, z = torch_kernels.wavenet(*values)
    return torch.stack(tuple(xs)) if xs else blocks.x.new_empty(0, *blocks.x.shape), z


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, *inputs[:6])
    ctx.dilations = inputs[6]


def backward(ctx: Any, dxs: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    if dxs is None and dz is None:
        return (None,) * 7
    found = _wavenet_backward(dxs, dz, *ctx.saved_tensors, ctx.dilations)
    kept = (v if need else None for v, need in zip(found, ctx.needs_input_grad, strict=False))
    return (*kept, None)


def backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:-1])
    ctx.dilations = inputs[-1]


def double_backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiates the reference's explicit backward, so that any order is right."""

    def formula(dxs: Any, dz: Any, xs: Tensor, z: Tensor, *saved: Any) -> tuple[Tensor, ...]:
        blocks = Blocks(*saved, ctx.dilations)  # type: ignore[call-arg]
        return reference.gradients(blocks, xs, z, dxs, dz)

    saved, x = ctx.saved_tensors, ctx.saved_tensors[4]
    found = [None] * len(saved) if x.numel() == 0 else pull_back(formula, saved, arriving)
    return (*found, None)


def vmap(info: Any, axes: Sequence[Any], *args: Any) -> tuple[Any, Any]:
    """Mapped inputs fold into the batch; with mapped parameters, each call is made by itself."""
    if any(axis is not None for axis in axes[1:5]):
        return one_by_one(_wavenet, info, axes, args)
    x, condition = (fold(args[i], axes[i], info.batch_size, 0) for i in (0, 5))
    xs, z = _wavenet(x, *args[1:5], condition, args[6])
    return (unfold(xs, info.batch_size, 1), unfold(z, info.batch_size, 0)), (2, 1)


def backward_vmap(info: Any, axes: Sequence[Any], *args: Any) -> tuple[Any, Any]:
    """Each mapped call has its own gradients of the parameters."""
    return one_by_one(_wavenet_backward, info, axes, args)


_wavenet = differentiable(_op, setup_context, backward, vmap, forward_mode)
_wavenet_backward = differentiable(
    _backward_op, backward_setup_context, double_backward, backward_vmap
)
