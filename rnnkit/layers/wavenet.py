"""WaveNet: a stack of gated residual blocks of dilated causal convolutions.

van den Oord et al.: "WaveNet: A Generative Model for Raw Audio", 2016 (arXiv:1609.03499),
equation 2 (the gate), figure 3 (the block), figure 4 (the stack) and section 2.5 (conditions).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activations import positive
from ..ops.wavenet import wavenet
from ..torch_kernels.activations import gated
from ..torch_kernels.wavenet import convolve
from .conv import CausalConv1d
from .generation import Sample, generate
from .stack import (
    Blocks,
    check_conditions,
    condition,
    dilations,
    fusible,
    given,
    skip_weights,
    weights,
)


class WaveNetBlock(torch.nn.Module):
    """One residual block: z = tanh(W_f * x + V_f h) . sigmoid(W_g * x + V_g h); x + W_r z goes on,
    W_s z is skip.

    `conv` holds W_f above W_g (dilated, causal), `residual` W_r and `skip` W_s (1x1). The condition
    h may be local (of each step), global (the same at every step), or both, whose terms are added;
    `local_condition` and `global_condition` hold V_f above V_g of each: weight
    (2 * channels, local_channels, 1) and (2 * channels, global_channels), no bias.

    Args:
        skip_channels: None is channels.
        residual: False for the last block of a stack, where nothing reads what goes on: no W_r,
            and the input is handed back.
        local_channels, global_channels: of the conditions; None is without.

    Raises ValueError, naming the argument, for sizes below 1.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 2,
        dilation: int = 1,
        skip_channels: int | None = None,
        *,
        residual: bool = True,
        local_channels: int | None = None,
        global_channels: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive("channels", channels)
        skip_channels = or_positive("skip_channels", skip_channels) or channels
        on: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = CausalConv1d(channels, 2 * channels, kernel_size, dilation=dilation, **on)
        self.residual = CausalConv1d(channels, channels, 1, **on) if residual else None
        self.skip = CausalConv1d(channels, skip_channels, 1, **on)
        self.local_channels = or_positive("local_channels", local_channels)
        self.global_channels = or_positive("global_channels", global_channels)
        self.local_condition = self.global_condition = None
        if local_channels is not None:
            self.local_condition = CausalConv1d(local_channels, 2 * channels, 1, bias=False, **on)
        if global_channels is not None:
            self.global_condition = torch.nn.Linear(global_channels, 2 * channels, False, **on)

    def forward(
        self,
        x: Tensor,
        *,
        local_condition: Tensor | None = None,
        global_condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x (N, channels, L) to (N, channels, L), which goes on, and skip (N, skip_channels, L).

        local_condition is (N, local_channels, L) and global_condition (N, global_channels), given
        if and only if the block has such channels. Floating dtypes, the weights'. Without the
        dimension N everywhere, too. Raises ValueError for a wrong rank or size.
        """
        channels = self.skip.in_channels
        if x.dim() not in (2, 3) or x.shape[-2] != channels:
            shape = f"(N, {channels}, L) or ({channels}, L)"
            raise ValueError(f"input must be {shape}, got {tuple(x.shape)}")
        conditions = (local_condition, global_condition)
        check_conditions(self, x, *conditions)
        if x.dim() == 2:
            on, skip = self(x[None], **given(*conditions, unbatched=True))
            return on[0], skip[0]
        if not fusible([self]):
            return self.by_modules(x, *conditions)
        h = condition([self], *conditions)
        xs, z = wavenet(x, *weights([self]), h, dilations([self]))
        return xs[0] if xs else x, self.skip(z)

    def by_modules(
        self, x: Tensor, local_condition: Tensor | None, global_condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same by calling every module, for their hooks and for modules put in their place."""
        a = self.conv(x)
        if self.local_condition is not None:
            a = a + self.local_condition(local_condition)
        if self.global_condition is not None:
            a = a + self.global_condition(global_condition)[..., None]
        z = gated(a)
        return x if self.residual is None else x + self.residual(z), self.skip(z)


class WaveNet(torch.nn.Module):
    """`blocks` times `layers` residual blocks, dilations 1, 2, 4, ... 2**(layers - 1) each time.

    A causal convolution (`input`) leads in; the skips of all residual blocks (`blocks`, each a
    WaveNetBlock) are summed, then relu, 1x1 (`hidden`), relu, 1x1 (`output`).

    Args:
        skip_channels: None is residual_channels.
        local_channels, global_channels: of the conditions that every block gets; None is without.

    Raises ValueError, naming the argument, for sizes below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        residual_channels: int = 32,
        skip_channels: int | None = None,
        kernel_size: int = 2,
        layers: int = 10,
        blocks: int = 3,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        local_channels: int | None = None,
        global_channels: int | None = None,
    ) -> None:
        super().__init__()
        positive("out_channels", out_channels)
        positive("residual_channels", residual_channels)
        skip_channels = or_positive("skip_channels", skip_channels) or residual_channels
        self.local_channels = or_positive("local_channels", local_channels)
        self.global_channels = or_positive("global_channels", global_channels)
        on: dict[str, Any] = {"device": device, "dtype": dtype}
        more = {"local_channels": local_channels, "global_channels": global_channels, **on}
        powers = [2**k for k in range(positive("layers", layers))] * positive("blocks", blocks)
        # A residual in the last block would hold weights that never get a gradient.
        last = len(powers) - 1
        self.input = CausalConv1d(in_channels, residual_channels, kernel_size, **on)
        self.blocks = torch.nn.ModuleList(
            WaveNetBlock(
                residual_channels, kernel_size, dilation, skip_channels, residual=i < last, **more
            )
            for i, dilation in enumerate(powers)
        )
        self.hidden = CausalConv1d(skip_channels, skip_channels, 1, activation="relu", **on)
        self.output = CausalConv1d(skip_channels, out_channels, 1, **on)

    @property
    def receptive_field(self) -> int:
        """How many inputs an output depends on, its own time step included."""
        convolutions = (m for m in self.modules() if isinstance(m, CausalConv1d))
        return 1 + sum(convolution.context for convolution in convolutions)

    def forward(
        self,
        x: Tensor,
        *,
        local_condition: Tensor | None = None,
        global_condition: Tensor | None = None,
    ) -> Tensor:
        """x (N, in_channels, L) to (N, out_channels, L); output t depends on inputs up to t, and on
        the conditions up to t.

        local_condition is (N, local_channels, L) and global_condition (N, global_channels), given
        if and only if the stack has such channels. Floating dtypes, the weights'. Without the
        dimension N everywhere, too. Raises ValueError for a wrong rank or size.
        """
        conditions = (local_condition, global_condition)
        x = self.input(x)
        check_conditions(self, x, *conditions)
        if x.dim() == 2:
            total = self.skips(x[None], **given(*conditions, unbatched=True))[0]
        else:
            total = self.skips(x, **given(*conditions))
        return self.output(self.hidden(torch.relu(total)))

    def skips(self, x: Tensor, **conditions: Tensor) -> Tensor:
        """The sum of all blocks' skips (N, skip_channels, L) for what `input` gives (N, C, L)."""
        if not self.is_fusible():
            first, *others = self.blocks
            x, total = first(x, **conditions)
            for block in others:
                x, skip = block(x, **conditions)
                total = total + skip
            return total
        blocks: Blocks = [*self.blocks]
        _, z = wavenet(x, *weights(blocks), condition(blocks, **conditions), dilations(blocks))
        return convolve(z, *skip_weights(blocks))

    def is_fusible(self) -> bool:
        """Whether the blocks may run in one go: not if one has hooks, or is another module."""
        return all(type(b) is WaveNetBlock for b in self.blocks) and fusible([*self.blocks])

    def generate(
        self,
        context: Tensor,
        steps: int,
        *,
        local_condition: Tensor | None = None,
        global_condition: Tensor | None = None,
        sample: Sample | None = None,
    ) -> Tensor:
        """The next `steps` values after context (N, in_channels, L), L >= 1, one by one.

        Each value is drawn from the output at the step before and is the input of the next: the
        first comes from the last step of the context. Each step costs the same, however many came
        before. Runs without gradient and autocast, in the weights' dtype, on their device.

        Args:
            context: (N, in_channels, L); only its last `receptive_field` steps matter.
            steps: how many values to generate, 0 or more.
            local_condition: (N, local_channels, L + steps - 1) or longer: of every input step.
            global_condition: (N, global_channels).
            sample: takes an output (N, out_channels) and gives the next input (N, in_channels).
                None hands the output itself on; out_channels must be in_channels.

        Returns:
            The values (N, in_channels, steps), in context's dtype.

        Raises ValueError, naming the argument, for wrong shapes and steps, for a sample that is
        missing or gives a wrong shape, and if a block has hooks or is no WaveNetBlock.
        """
        return generate(self, context, steps, local_condition, global_condition, sample)


def or_positive(name: str, value: int | None) -> int | None:
    """None, or an integer of at least 1."""
    return None if value is None else positive(name, value)
