"""WaveNet's residual blocks in plain PyTorch, with an explicit backward: the judge and fallback.

van den Oord et al.: "WaveNet", 2016 (arXiv:1609.03499), equation 2 and figure 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops.blocks import Blocks, allocate, allocate_gradients
from .activations import ACTIVATIONS
from .causal_conv1d import (
    before_activation,
    gradient_of_sums,
    inputs_gradient,
    parameters_gradient,
    taps,
    widened,
)

if TYPE_CHECKING:
    from ..dispatch import LayerProblem


def why_not(problem: LayerProblem) -> str | None:
    return None


def wavenet(blocks: Blocks) -> tuple[Tensor, Tensor]:
    """xs (R, N, C, L), what each block hands on, and z (N, D * C, L), the gates of all blocks."""
    x, xs, zs = blocks.x, [], []
    for i in range(len(blocks.dilations)):
        call, add = widened(blocks.gate(i, x)), blocks.addend(i)
        a = before_activation(call, taps(call), torch.matmul)
        a = a if add is None else a + add
        zs.append(ACTIVATIONS["gated"].value(*a.chunk(2, 1)).to(x.dtype))
        if i < blocks.r.shape[0]:
            call = widened(blocks.onward(i, zs[i]))
            x = (x + before_activation(call, taps(call), torch.matmul)).to(x.dtype)
            xs.append(x)
    found = torch.stack(xs) if xs else x.new_empty(0, *x.shape), torch.cat(zs, 1)
    handed_on, z = (o.copy_(v) for o, v in zip(allocate(blocks), found, strict=True))
    return handed_on, z


def wavenet_backward(
    blocks: Blocks, xs: Tensor, z: Tensor, dxs: Tensor | None, dz: Tensor | None
) -> tuple[Tensor, ...]:
    """dx, dw, db, dr, drb and dcondition (empty if there is none), laid out as the operator's."""
    found = gradients(blocks, xs, z, dxs, dz)
    return tuple(o.copy_(v) for o, v in zip(allocate_gradients(blocks), found, strict=True))


def gradients(
    blocks: Blocks, xs: Tensor, z: Tensor, dxs: Tensor | None, dz: Tensor | None
) -> tuple[Tensor, ...]:
    """The same by operations that torch differentiates."""
    dxs = torch.zeros_like(xs) if dxs is None else dxs
    dz = torch.zeros_like(z) if dz is None else dz
    R, dx = xs.shape[0], None
    residuals, gates, conditions = [], [], []
    for i in reversed(range(len(blocks.dilations))):
        gate = blocks.gate(i, blocks.x if i == 0 else xs[i - 1])
        into_z = blocks.of(dz, i)
        if i < R:
            dx = dxs[i] if dx is None else dx + dxs[i]
            onward, wide = blocks.onward(i, blocks.of(z, i)), dx.to(widened(gate).x.dtype)
            into_z = into_z + inputs_gradient(onward, wide)[0]
            residuals.append(parameters_gradient(onward, wide))
        da = gradient_of_sums(gate, into_z, blocks.addend(i))
        gates.append(parameters_gradient(gate, da))
        conditions.append(da.to(z.dtype))
        through = inputs_gradient(gate, da)[0]
        dx = through if dx is None else dx + through
    assert dx is not None
    dw, db = (torch.stack(v[::-1]) for v in zip(*gates, strict=True))
    dr, drb = blocks.r * 0, blocks.rb * 0
    if R:
        dr, drb = (torch.stack(v[::-1]) for v in zip(*residuals, strict=True))
    return dx, dw, db, dr.view_as(blocks.r), drb, condition_gradient(blocks, conditions[::-1])


def condition_gradient(blocks: Blocks, da: Sequence[Tensor]) -> Tensor:
    """The condition's gradient, given the gradients of every gate's sums."""
    if blocks.condition is None:
        return blocks.x.new_empty(0)
    whole = torch.cat(tuple(da), 1)
    return whole.sum(2, keepdim=True) if blocks.condition.shape[2] == 1 else whole
