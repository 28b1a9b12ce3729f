"""WaveNet: a stack of gated residual blocks of dilated causal convolutions.

van den Oord et al.: "WaveNet: A Generative Model for Raw Audio", 2016 (arXiv:1609.03499),
equation 2 (the gate), figure 3 (the block) and figure 4 (the stack).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.causal_conv1d import positive
from .conv import CausalConv1d


class WaveNetBlock(torch.nn.Module):
    """One residual block: z = tanh(W_f * x) . sigmoid(W_g * x); x + W_r z goes on, W_s z is skip.

    `conv` holds W_f and W_g (dilated, causal), `residual` W_r and `skip` W_s (1x1).
    skip_channels: None is channels.
    residual=False: for the last block of a stack, where nothing reads what goes on: no W_r, and
    the input is handed back.

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
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        skip_channels = skip_channels_or(skip_channels, positive("channels", channels))
        on: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = CausalConv1d(
            channels, channels, kernel_size, dilation=dilation, activation="gated", **on
        )
        self.residual = CausalConv1d(channels, channels, 1, **on) if residual else None
        self.skip = CausalConv1d(channels, skip_channels, 1, **on)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, channels, L) to (N, channels, L), which goes on, and skip (N, skip_channels, L).

        Floating dtypes, the weights'. Raises ValueError for a wrong rank or channel count.
        """
        z = self.conv(x)
        return x if self.residual is None else x + self.residual(z), self.skip(z)


class WaveNet(torch.nn.Module):
    """`blocks` times `layers` residual blocks, dilations 1, 2, 4, ... 2**(layers - 1) each time.

    A causal convolution (`input`) leads in; the skips of all residual blocks are summed, then
    relu, 1x1 (`hidden`), relu, 1x1 (`output`). skip_channels: None is residual_channels.

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
    ) -> None:
        super().__init__()
        positive("out_channels", out_channels)
        skip_channels = skip_channels_or(
            skip_channels, positive("residual_channels", residual_channels)
        )
        on: dict[str, Any] = {"device": device, "dtype": dtype}
        dilations = [2**k for k in range(positive("layers", layers))] * positive("blocks", blocks)
        # A residual in the last block would hold weights that never get a gradient.
        last = len(dilations) - 1
        self.input = CausalConv1d(in_channels, residual_channels, kernel_size, **on)
        self.blocks = torch.nn.ModuleList(
            WaveNetBlock(
                residual_channels, kernel_size, dilation, skip_channels, residual=i < last, **on
            )
            for i, dilation in enumerate(dilations)
        )
        self.hidden = CausalConv1d(skip_channels, skip_channels, 1, activation="relu", **on)
        self.output = CausalConv1d(skip_channels, out_channels, 1, **on)

    @property
    def receptive_field(self) -> int:
        """How many inputs an output depends on, its own time step included."""
        convolutions = (m for m in self.modules() if isinstance(m, CausalConv1d))
        return 1 + sum(convolution.context for convolution in convolutions)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in_channels, L) to (N, out_channels, L); output t depends on inputs up to t.

        Floating dtypes, the weights'. Raises ValueError for a wrong rank or channel count.
        """
        first, *others = self.blocks
        x, total = first(self.input(x))
        # Adding up: one product over the concatenated z took twice as long on a CPU at L = 50.
        for block in others:
            x, skip = block(x)
            total = total + skip
        return self.output(self.hidden(torch.relu(total)))


def skip_channels_or(skip_channels: int | None, default: int) -> int:
    return default if skip_channels is None else positive("skip_channels", skip_channels)
