"""`rnnkit::layer_norm` and `rnnkit::layer_norm_backward`: layer normalisation of rows, with an
optional sum before and an optional activation after it.

Dimensions: M rows, N columns, over which a row is normalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..activations import POINTWISE, check_activation
from ..reference import layer_norm as reference
from ..torch_kernels import layer_norm as torch_kernels
from .rows import allocate, allocate_gradients, check, checked_sizes, total_dtype
from .transforms import differentiable, fold, one_by_one, pull_back, unfold


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
    return_sum: bool = False,
) -> Any:
    """y = activation(LN(x + residual) * weight + bias).

    Args:
        x: (*, *normalized_shape), any floating dtype.
        normalized_shape: the last sizes of x, over which mean and (biased) variance run; both are
            computed in float32 where x has a half dtype.
        weight, bias: normalized_shape, any floating dtype; None means one and zero.
        residual: as x; the sum is rounded to the dtype that torch promotes the two to.
        activation: None, "relu", "silu" or "tanh".
        return_sum: whether v = x + residual (x itself without a residual) is returned too. A
            pre-norm network needs it: v goes on beside the branch that y enters.

    Returns:
        y, in v's dtype (float32 under autocast, except on a CPU, as torch.nn.functional.layer_norm
        gives it); with return_sum, (y, v).

    Raises ValueError or TypeError naming the argument, and torch's own RuntimeError for x, weight
    or bias that do not end in normalized_shape.
    """
    check_activation(activation, POINTWISE)
    sizes = checked_sizes(normalized_shape)
    check(x, sizes, weight, bias, residual)
    N, shape = math.prod(sizes), x.shape
    M = math.prod(shape[: len(shape) - len(sizes)])
    dtype = total_dtype(x, residual)
    extras = () if residual is None else ("residual",)
    if dispatch.on_torch(problem_of((M, N), activation, dtype, x.device, extras=extras), x):
        y, v = torch_kernels.layer_norm(x, sizes, weight, bias, eps, residual, activation)
        return (y, v) if return_sum else y
    if dtype.itemsize < 4 and x.device.type != "cpu" and dispatch.autocasts(x.device):
        dtype = torch.float32
    flat = [None if p is None else p.reshape(N) for p in (weight, bias)]
    added = None if residual is None else residual.reshape(M, N)
    y, total, _ = _layer_norm(x.reshape(M, N), *flat, added, float(eps), activation, dtype)
    y = y.reshape(shape)
    return (y, x if residual is None else total.reshape(shape)) if return_sum else y


def problem_of(
    shape: Sequence[int],
    activation: str | None,
    dtype: torch.dtype,
    device: torch.device,
    backward: bool = False,
    extras: tuple[str, ...] | None = None,
) -> dispatch.LayerProblem:
    """shape: (M, N). dtype: that of x + residual."""
    sizes, dual = (("M", shape[0]), ("N", shape[1])), dispatch.in_forward_mode()
    return dispatch.LayerProblem(
        "layer_norm", sizes, activation, dtype, device, backward, dual, extras
    )


@torch.library.custom_op("rnnkit::layer_norm", mutates_args=())
def _op(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    call = (x, weight, bias, residual, eps, activation, dtype)
    if x.numel() == 0:
        return reference.layer_norm(*call)
    problem = problem_of(x.shape, activation, total_dtype(x, residual), x.device)
    with dispatch.plain_arithmetic(x.device):
        found: tuple[Tensor, Tensor, Tensor]
        found = dispatch.settle(problem).layer_norm(*call)
    return found


@_op.register_fake
def _(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return allocate(x, args[2], args[-1])


@torch.library.custom_op("rnnkit::layer_norm_backward", mutates_args=())
def _backward_op(
    dy: Tensor | None,
    dtotal: Tensor | None,
    v: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    call = (dy, dtotal, v, weight, bias, stats, eps, activation)
    if dy is None or v.numel() == 0:
        # Only the sum's gradient passes, or nothing does.
        dv, dw, db = allocate_gradients(v, weight, bias)
        return dv.zero_() if dtotal is None else dv.copy_(dtotal), dw.zero_(), db.zero_()
    with dispatch.plain_arithmetic(v.device):
        problem = problem_of(v.shape, activation, v.dtype, v.device, backward=True)
        found: tuple[Tensor, Tensor, Tensor]
        found = dispatch.settle(problem).layer_norm_backward(*call)
    return found


@_backward_op.register_fake
def _(dy: Tensor | None, dtotal: Tensor | None, v: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return allocate_gradients(v, *args[:2])


def forward_mode(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Where inputs may have tangents: the reference, which torch itself differentiates."""
    x, residual, activation = call[0], call[3], call[5]
    # Refuses a forced backend that is not the reference.
    dispatch.settle(problem_of(x.shape, activation, total_dtype(x, residual), x.device))
    with dispatch.plain_arithmetic(x.device):
        return reference.layer_norm(*call)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, eps, activation, _ = inputs
    _, total, stats = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if residual is None else total, weight, bias, stats)
    ctx.static = eps, activation
    ctx.added = None if residual is None else residual.dtype
    ctx.dtype = x.dtype


def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    # Without a residual, the sum is an empty tensor.
    dy, dtotal = arriving[0], None if ctx.added is None else arriving[1]
    if dy is None and dtotal is None:
        return (None,) * 7
    v, weight, bias, stats = ctx.saved_tensors
    dv, dw, db = _layer_norm_backward(dy, dtotal, v, weight, bias, stats, *ctx.static)
    dw, db = None if weight is None else dw, None if bias is None else db
    dx, added = dv.to(ctx.dtype), None if ctx.added is None else dv.to(ctx.added)
    if added is not None and added is dx and ctx.needs_input_grad[0] and ctx.needs_input_grad[3]:
        # Behind two views of one memory autograd would add to both at once.
        added = dx.clone()
    return dx, dw, db, added, None, None, None


def backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    # The statistics are a function of v: the formula of second derivatives computes them anew.
    ctx.save_for_backward(*inputs[:5])
    ctx.static = inputs[6:]


def double_backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiates the reference's explicit backward, so that any order is right."""

    def formula(*saved: Any) -> tuple[Tensor, ...]:
        return reference.layer_norm_backward(*saved, None, *ctx.static)  # type: ignore[call-arg]

    found = pull_back(formula, ctx.saved_tensors, arriving)
    return (*found, *(None,) * 3)


def vmap(info: Any, axes: Sequence[Any], *args: Any) -> tuple[Any, Any]:
    """Folds the mapped dimension into the rows where weight and bias are shared."""
    if axes[1] is not None or axes[2] is not None:
        return one_by_one(_layer_norm, info, axes, args)
    x, weight, bias, residual, *static = args
    x, residual = (
        fold(value, axis, info.batch_size, 0) for value, axis in ((x, axes[0]), (residual, axes[3]))
    )
    y, total, stats = _layer_norm(x, weight, bias, residual, *static)
    rows = tuple(unfold(value, info.batch_size, 0) for value in (y, total))
    return (*rows, unfold(stats, info.batch_size, 1)), (1, 1, 2)


def backward_vmap(info: Any, axes: Sequence[Any], *args: Any) -> tuple[Any, Any]:
    """Each mapped call has its own weight gradients."""
    return one_by_one(_layer_norm_backward, info, axes, args)


_layer_norm = differentiable(_op, setup_context, backward, vmap, forward_mode)
_layer_norm_backward = differentiable(
    _backward_op, backward_setup_context, double_backward, backward_vmap
)
