"""Autoregressive generation by a WaveNet: a step costs one step, not a receptive field.

Every convolution keeps the inputs that it is to read again, so that nothing is computed twice:
Paine et al.: "Fast Wavenet Generation Algorithm", 2016 (arXiv:1611.09482).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.wavenet import wavenet
from .stack import (
    Blocks,
    check_condition,
    condition,
    dilations,
    hooked,
    is_plain,
    skip_weights,
    weights,
)

if TYPE_CHECKING:
    from .wavenet import WaveNet

Sample = Callable[[Tensor], Tensor]


def generate(
    model: WaveNet,
    context: Tensor,
    steps: int,
    local_condition: Tensor | None,
    global_condition: Tensor | None,
    sample: Sample | None,
) -> Tensor:
    """What WaveNet.generate describes."""
    check(model, context, steps, sample)
    check_conditions(model, context, steps, local_condition, global_condition)
    N, C, _ = context.shape
    values = context.new_empty(N, C, steps)
    if steps == 0:
        return values
    with torch.no_grad(), torch.autocast(context.device.type, enabled=False):
        walk = Walk(model, context, local_condition, global_condition)
        for t in range(steps):
            output = walk.step(values[..., t - 1]) if t else walk.first
            value = output if sample is None else sample(output)
            if value.shape != (N, C):
                raise ValueError(f"sample must return {(N, C)}, got {tuple(value.shape)}")
            values[..., t] = value
    return values


class Walk:
    """A stack that goes on from a context step by step; `first` is its output (N, out_channels) at
    the context's last step."""

    def __init__(
        self,
        model: WaveNet,
        context: Tensor,
        local_condition: Tensor | None,
        global_condition: Tensor | None,
    ) -> None:
        blocks: Blocks = [*model.blocks]
        end = context.shape[2]
        # What lies further back than the receptive field is not read again.
        seen = slice(max(0, end - model.receptive_field), end)
        context = context[..., seen]
        local = None if local_condition is None else local_condition[..., seen]
        w, b, r, rb = weights(blocks)
        x = model.input(context)
        h = condition(blocks, local, global_condition)
        xs, z = wavenet(x, w, b, r, rb, h, dilations(blocks))
        pasts = [context, x, *xs[: len(blocks) - 1]]
        self.rings = [
            Ring(*found)
            for found in zip([model.input.weight, *w], pasts, [1, *dilations(blocks)], strict=True)
        ]
        self.input_bias: Any = model.input.bias
        self.residuals = [(weight.T.contiguous(), bias) for weight, bias in zip(r, rb, strict=True)]
        self.head = [
            transposed(*skip_weights(blocks)),
            transposed(model.hidden.weight, model.hidden.bias),
            transposed(model.output.weight, model.output.bias),
        ]
        self.shares = Shares(blocks, torch.cat(b), local_condition, global_condition, end)
        self.first = self.outputs(z[..., -1])
        self.t = 0

    def step(self, x: Tensor) -> Tensor:
        """The output (N, out_channels) at the next step, whose input is x (N, in_channels)."""
        lead, *rings = self.rings
        x, zs = lead.product(x, self.t, self.input_bias), []
        for i, (ring, share) in enumerate(zip(rings, self.shares.at(self.t), strict=True)):
            a = ring.product(x, self.t, share)
            a[:, : a.shape[1] // 2].tanh_()
            # glu is the first half times the sigmoid of the second.
            zs.append(F.glu(a, 1))
            if i < len(self.residuals):
                weight, bias = self.residuals[i]
                x = torch.addmm(bias, zs[i], weight).add_(x)
        self.t += 1
        return self.outputs(torch.cat(zs, 1))

    def outputs(self, z: Tensor) -> Tensor:
        """From the z of all blocks at one step (N, D * C)."""
        (skip, sb), (hidden, hb), (output, ob) = self.head
        total = torch.addmm(sb, z, skip)
        return torch.addmm(ob, torch.addmm(hb, total.relu_(), hidden).relu_(), output)


class Shares:
    """What is added to each block's convolution at a step, bias and conditions: one product a step
    for all blocks."""

    def __init__(
        self,
        blocks: Blocks,
        bias: Tensor,
        local_condition: Tensor | None,
        global_condition: Tensor | None,
        end: int,
    ) -> None:
        same = condition(blocks, None, global_condition)
        self.bias = bias if same is None else same[..., 0] + bias
        self.always, self.local = self.bias.chunk(len(blocks), -1), None
        if local_condition is not None:
            self.local = local_condition[..., end:].unbind(2)
            v = torch.cat([block.local_condition.weight for block in blocks])
            self.weight = v[..., 0].T.contiguous()

    def at(self, t: int) -> Sequence[Tensor]:
        """Of each block, (N, 2C), or (2C,) if it is the bias alone."""
        if self.local is None:
            return self.always
        found = torch.addmm(self.bias, self.local[t], self.weight)
        return found.chunk(len(self.always), -1)


class Ring:
    """The last K * dilation inputs of a convolution, kept so that those of a step are one row.

    `memory` (dilation, N, K, C) holds the input of step t at [t % dilation, :, t // dilation % K]:
    what step t reads lies there together, in an order that has turned by one every `dilation`
    steps. So are the weights, once for each of the K turns.

    weight: (O, C, K), as the convolution has it.
    past: (N, C, L), its inputs before step 0.
    """

    def __init__(self, weight: Tensor, past: Tensor, dilation: int) -> None:
        K = weight.shape[2]
        size = K * dilation
        # Zeros stand before the start.
        past = F.pad(past, (max(0, size - past.shape[2]), 0))[..., -size:]
        memory = past.unflatten(2, (K, dilation)).permute(3, 0, 2, 1).contiguous()
        # Views, made once: to index anew at every step would take longer than to copy.
        self.rows = memory.flatten(2).unbind(0)
        self.slots = [memory[:, :, turn].unbind(0) for turn in range(K)]
        self.turns = [
            weight.roll(turn + 1, 2).permute(2, 1, 0).flatten(0, 1).contiguous()
            for turn in range(K)
        ]

    def product(self, x: Tensor, t: int, share: Tensor) -> Tensor:
        """The convolution's output (N, O) at step t, plus share; x (N, C) is the step's input."""
        turn, phase = t // len(self.rows) % len(self.turns), t % len(self.rows)
        self.slots[turn][phase].copy_(x)
        return torch.addmm(share, self.rows[phase], self.turns[turn])


def transposed(weight: Tensor, bias: Any) -> tuple[Tensor, Tensor]:
    """Those of a 1x1 convolution (O, C, 1), as (C, O) for a product from the right."""
    return weight[..., 0].T.contiguous(), bias


def check(model: WaveNet, context: Tensor, steps: int, sample: Sample | None) -> None:
    """ValueError for the first of these that does not fit the model."""
    parts = {"input": None, "hidden": "relu", "output": None}
    if not model.is_fusible() or not all(
        is_plain("conv", part, activation) and not hooked(part)
        for name, activation in parts.items()
        for part in [getattr(model, name)]
    ):
        raise ValueError(
            "generate reads the weights of WaveNetBlocks and CausalConv1ds instead of calling "
            "them: none may have a hook or be replaced by another module"
        )
    channels = model.input.in_channels
    if context.dim() != 3 or context.shape[1] != channels or context.shape[2] == 0:
        raise ValueError(
            f"context must be (N, {channels}, L) with L of at least 1, got {tuple(context.shape)}"
        )
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be an integer of at least 0, got {steps!r}")
    if sample is None and model.output.out_channels != channels:
        raise ValueError(
            f"sample must be given, to make an input of {channels} channels "
            f"of an output of {model.output.out_channels}"
        )


def check_conditions(
    model: WaveNet,
    context: Tensor,
    steps: int,
    local_condition: Tensor | None,
    global_condition: Tensor | None,
) -> None:
    """ValueError unless each condition is given where it is wanted, for every input step."""
    N, length = context.shape[0], context.shape[2] + steps - 1
    if local_condition is not None:
        # It may be longer.
        length = max(length, *local_condition.shape[-1:])
    check_condition(
        "local", local_condition, model.local_channels, (N, model.local_channels, length)
    )
    check_condition("global", global_condition, model.global_channels, (N, model.global_channels))
