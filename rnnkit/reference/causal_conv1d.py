"""Causal dilated convolution in plain PyTorch: the definition, judge and fallback.

van den Oord et al.: "WaveNet: A Generative Model for Raw Audio", 2016 (arXiv:1609.03499),
section 2.1; the gated activation is its equation 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activations import parts
from ..ops.convolution import Convolution, allocate, allocate_gradients, cast
from .activations import ACTIVATIONS

if TYPE_CHECKING:
    from ..dispatch import LayerProblem

# Products that `by_halves` holds at a time: a few megabytes.
AT_ONCE = 2**18


def why_not(problem: LayerProblem) -> str | None:
    return None


def note(problem: LayerProblem) -> str:
    if problem.dtype == torch.float64:
        return "in float64, chunks and steps equal the whole sequence bit for bit"
    return "plain PyTorch, one product over all taps"


def causal_conv1d(call: Convolution) -> Tensor:
    """y (N, O, ceil(L / stride)), O / 2 channels if gated, computed in float32 at least."""
    wide, exact = widened(call), call.x.dtype == torch.float64
    a = before_activation(wide, taps(wide), by_halves if exact else torch.matmul)
    y = ACTIVATIONS[call.activation].value(*a.chunk(parts(call.activation), 1))
    return allocate(call).copy_(y)


def causal_conv1d_backward(
    call: Convolution, dy: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """dx, dstate, dw and db, laid out as the operator's; the first and last two if wanted."""
    found = zip(allocate_gradients(call, wanted), gradients(call, dy, wanted), strict=True)
    return tuple(out if v is None or out.numel() == 0 else out.copy_(v) for out, v in found)


def gradients(
    call: Convolution, dy: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The same by operations that torch differentiates; None where not wanted."""
    da = gradient_of_sums(call, dy, None)
    dx, dstate = inputs_gradient(call, da) if wanted[0] else (None, None)
    dw, db = parameters_gradient(call, da) if wanted[1] else (None, None)
    return dx, dstate, dw, db


def widened(call: Convolution) -> Convolution:
    return cast(call, torch.promote_types(call.x.dtype, torch.float32))


def gradient_of_sums(call: Convolution, dy: Tensor, add: Tensor | None) -> Tensor:
    """The gradient (N, O, T) of what the activation takes: products, bias and add, in float32."""
    call = widened(call)
    a = before_activation(call, taps(call), torch.matmul)
    a = a if add is None else a + add
    halves = a.chunk(parts(call.activation), 1)
    return torch.cat(ACTIVATIONS[call.activation].vjp(dy.to(a.dtype), *halves), 1)


def inputs_gradient(call: Convolution, da: Tensor) -> tuple[Tensor, Tensor]:
    """dx and dstate from the gradient of the sums."""
    wide = widened(call)
    dseen = rows(wide).mT @ da.unflatten(1, (call.groups, -1))
    dstate, dx = spread(call, dseen).to(call.x.dtype).split([call.context, call.x.shape[2]], 2)
    return dx, dstate


def parameters_gradient(call: Convolution, da: Tensor) -> tuple[Tensor, Tensor]:
    """dw and db from the gradient of the sums."""
    seen, dtype = taps(widened(call)), call.x.dtype
    dw = (da.unflatten(1, (call.groups, -1)) @ seen.mT).sum(0).view(call.weight.shape)
    return dw.to(dtype), da.sum((0, 2)).to(dtype)


def rows(call: Convolution) -> Tensor:
    """The weights (groups, O / groups, C / groups * K)."""
    return call.weight.flatten(1).unflatten(0, (call.groups, -1))


def taps(call: Convolution) -> Tensor:
    """What each output reads: (N, groups, C / groups * K, ceil(L / stride))."""
    x, context = call.x, call.context
    seen = F.pad(x, (context, 0)) if call.state is None else torch.cat([call.state, x], 2)
    starts = [k * call.dilation for k in range(call.weight.shape[2])]
    found = torch.stack([seen[..., k : k + x.shape[2] : call.stride] for k in starts], 2)
    return found.flatten(1, 2).unflatten(1, (call.groups, -1))


def before_activation(call: Convolution, seen: Tensor, product: Callable[..., Tensor]) -> Tensor:
    """(N, O, ceil(L / stride)): the product of the weights with all taps, and the bias."""
    a = product(rows(call), seen).flatten(1, 2)
    return a if call.bias is None else a + call.bias[:, None]


def spread(call: Convolution, dseen: Tensor) -> Tensor:
    """The transpose of `taps`: (N, C, context + L) from (N, groups, C / groups * K, ...)."""
    K, total = call.weight.shape[2], call.context + call.x.shape[2]
    stuffed = F.pad(dseen.flatten(1, 2)[..., None], (0, call.stride - 1)).flatten(2)
    stuffed = stuffed.unflatten(1, (-1, K)).unbind(2)
    parts = [
        F.pad(v, (k * call.dilation, total - k * call.dilation - v.shape[2]))
        for k, v in enumerate(stuffed)
    ]
    return torch.stack(parts).sum(0)


def by_halves(w: Tensor, seen: Tensor) -> Tensor:
    """w @ seen, (g, O, R) and (N, g, R, T), summed over R by halves.

    A BLAS library orders its sums by the shape of the whole product; here an output depends on
    nothing but its own taps, bit for bit: only elementwise products and sums, in a fixed order.
    """
    N, g, R, T = seen.shape
    rows = seen.permute(0, 3, 1, 2).reshape(N * T, g, 1, R)
    size = max(1, AT_ONCE // max(1, w.numel()))
    out = [sum_by_halves(part * w) for part in rows.split(size)]
    return torch.cat(out).view(N, T, g, -1).permute(0, 2, 3, 1)


def sum_by_halves(v: Tensor) -> Tensor:
    """The sum over the last dimension, of at least one element."""
    while v.shape[-1] > 1:
        half = v.shape[-1] // 2
        pairs = v[..., :half] + v[..., half : 2 * half]
        v = pairs if v.shape[-1] % 2 == 0 else torch.cat([pairs, v[..., -1:]], -1)
    return v[..., 0]
