"""`rnnkit::causal_conv1d` and `rnnkit::causal_conv1d_backward`: the causal convolution.

Dimensions: N batch, C input channels, O rows of the weight, K taps, L time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..reference import causal_conv1d as reference
from ..torch_kernels import causal_conv1d as torch_kernels
from .convolution import (
    Convolution,
    allocate,
    allocate_gradients,
    cast,
    check,
    check_alike,
    dtype_of,
)
from .transforms import differentiable, fold, one_by_one, pull_back, unfold


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    activation: str | None = None,
    state: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    """`y[n,o,t] = activation(bias[o] + sum_{c,k} weight[o,c,k] * x[n,c, t*stride - (K-1-k)*d])`.

    Args:
        x: (N, C, L), in any memory layout.
        weight: (O, C / groups, K), as in torch.nn.functional.conv1d.
        bias: (O,); None means zero.
        stride, dilation (d above), groups: integers of at least 1; groups divides C and O.
        activation: None, "relu", "silu", "tanh" or "gated".
        state: (N, C, (K - 1) * d), the inputs before x; None means zeros.
        channels_last: whether the result is laid out as (N, L, O) in memory.

    All tensors share one floating dtype and device.

    Returns:
        y (N, O, ceil(L / stride)), with O / 2 channels if gated.

    Raises ValueError or TypeError, naming the argument.
    """
    call = Convolution(x, weight, bias, state, stride, dilation, groups, activation, channels_last)
    check(call)
    dtype = dtype_of(x)
    if dispatch.on_torch(problem_of(call, extras=())._replace(dtype=dtype), x):
        return torch_kernels.causal_conv1d(call)
    if dispatch.autocasts(x.device):
        call = cast(call, dtype)
    check_alike(call)
    return _causal_conv1d(*call)


def problem_of(
    call: Convolution, backward: bool = False, extras: tuple[str, ...] | None = None
) -> dispatch.LayerProblem:
    (N, C, L), (O, _, K) = call.x.shape, call.weight.shape  # noqa: E741
    sizes = {"N": N, "C": C, "O": O, "K": K, "L": L, "stride": call.stride}
    sizes |= {"dilation": call.dilation, "groups": call.groups}
    named, dual = tuple(sizes.items()), dispatch.in_forward_mode()
    kind = call.activation, call.x.dtype, call.x.device
    return dispatch.LayerProblem("causal_conv1d", named, *kind, backward, dual, extras)


@torch.library.custom_op("rnnkit::causal_conv1d", mutates_args=())
def _op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    stride: int,
    dilation: int,
    groups: int,
    activation: str | None,
    channels_last: bool,
) -> Tensor:
    call = Convolution(x, weight, bias, state, stride, dilation, groups, activation, channels_last)
    if 0 in (x.shape[0], x.shape[2]):
        return allocate(call)
    with dispatch.plain_arithmetic(x.device):
        return dispatch.settle(problem_of(call)).causal_conv1d(call)


@_op.register_fake
def _(*args: Any) -> Tensor:
    return allocate(Convolution(*args))


@torch.library.custom_op("rnnkit::causal_conv1d_backward", mutates_args=())
def _backward_op(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    stride: int,
    dilation: int,
    groups: int,
    activation: str | None,
    channels_last: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Convolution(x, weight, bias, state, stride, dilation, groups, activation, channels_last)
    if 0 in (x.shape[0], x.shape[2]):
        dx, dstate, dw, db = (v.zero_() for v in allocate_gradients(call, wanted))
        return dx, dstate, dw, db
    with dispatch.plain_arithmetic(x.device):
        backend = dispatch.settle(problem_of(call, backward=True))
        return backend.causal_conv1d_backward(call, dy, wanted)


@_backward_op.register_fake
def _(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return allocate_gradients(Convolution(*args[:-1]), args[-1])


def forward_mode(*values: Any) -> Tensor:
    """The convolution where inputs may have tangents: torch's, differentiated by torch itself."""
    call = Convolution(*values)
    dispatch.settle(problem_of(call))  # refuses a forced backend that is not the reference
    return torch_kernels.causal_conv1d(call)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.static = inputs[4:]


def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    wanted = (needs[0] or needs[3], needs[1] or needs[2])
    dx, dstate, dw, db = _causal_conv1d_backward(dy, *ctx.saved_tensors, *ctx.static, wanted)
    found = [v if need else None for v, need in zip((dx, dw, db, dstate), needs, strict=False)]
    return (*found, *(None,) * len(ctx.static))


def backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.static, ctx.wanted = inputs[5:-1], inputs[-1]


def double_backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiates the reference's explicit backward, so that any order is right."""

    def formula(dy: Tensor, *saved: Any) -> tuple[Tensor | None, ...]:
        return reference.gradients(Convolution(*saved, *ctx.static), dy, ctx.wanted)

    saved, x = ctx.saved_tensors, ctx.saved_tensors[1]
    found = [None] * len(saved) if x.numel() == 0 else pull_back(formula, saved, arriving)
    return (*found, *(None,) * (len(ctx.static) + 1))


def vmap(info: Any, axes: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    """Mapped inputs fold into the batch; with mapped parameters, each call is made by itself."""
    if axes[1] is not None or axes[2] is not None:
        return one_by_one(_causal_conv1d, info, axes, args)
    x, state = (fold(args[i], axes[i], info.batch_size, 0) for i in (0, 3))
    return unfold(_causal_conv1d(x, *args[1:3], state, *args[4:]), info.batch_size, 0), 1


def backward_vmap(info: Any, axes: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    """Each mapped call has its own gradients of the parameters."""
    return one_by_one(_causal_conv1d_backward, info, axes, args)


_causal_conv1d = differentiable(_op, setup_context, backward, vmap, forward_mode)
_causal_conv1d_backward = differentiable(
    _backward_op, backward_setup_context, double_backward, backward_vmap
)
