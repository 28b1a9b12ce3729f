"""CausalConv1d: torch.nn.Conv1d that sees the past only, whole, in chunks or step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activations import ALL, check_activation, parts, positive
from ..ops.causal_conv1d import causal_conv1d


class CausalConv1d(torch.nn.Conv1d):
    """torch.nn.Conv1d on an input padded left by (kernel_size - 1) * dilation: output t is a
    function of inputs up to t * stride, and there are ceil(L / stride) outputs.

    van den Oord et al.: "WaveNet", 2016 (arXiv:1609.03499), section 2.1. Weight layout, names and
    initialisation are torch.nn.Conv1d's. What follows `stride` is keyword-only, because
    torch.nn.Conv1d has `padding` there: a ported positional call must fail, not change its meaning.

    Args:
        activation: None, "relu", "silu", "tanh" or "gated" (equation 2: weight and bias have
            2 * out_channels rows, and the result is tanh(first half) * sigmoid(second half)).
        channels_last: input and output are (N, L, C) instead of (N, C, L).
        padding: there is no choice of it; anything but None is refused.

    Raises ValueError, naming the argument, for sizes below 1, groups that do not divide the
    channels, an unknown activation and any padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        *,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        activation: str | None = None,
        channels_last: bool = False,
        padding: None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if padding is not None:
            raise ValueError(
                f"padding must not be given, got {padding!r}: a causal convolution is always "
                "padded left by (kernel_size - 1) * dilation and never right"
            )
        check_activation(activation, ALL)
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if positive(name, value) % positive("groups", groups):
                raise ValueError(f"groups must divide {name} = {value}, got {groups}")
        super().__init__(
            in_channels,
            out_channels * parts(activation),
            single("kernel_size", kernel_size),
            single("stride", stride),
            dilation=single("dilation", dilation),
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.out_channels = out_channels
        self.activation = activation
        self.channels_last = channels_last

    @property
    def context(self) -> int:
        """(kernel_size - 1) * dilation: how many past inputs an output needs, a state's length."""
        return (self.kernel_size[0] - 1) * self.dilation[0]

    def forward(  # type: ignore[override]
        self, input: Tensor, state: Tensor | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The convolution of input, preceded by state; with return_state, also the next state.

        Shapes: input (N, in_channels, L), or (in_channels, L) unbatched, with the last two swapped
        if channels_last; the output likewise with out_channels and ceil(L / stride). A state is
        (N, in_channels, context) in either layout, (in_channels, context) unbatched: the last
        inputs, zeros at the start. Dtype: the weight's (or autocast's), state as input.

        Raises ValueError for a wrong rank, channel count or state, and for return_state with an L
        that is no multiple of stride: the next chunk would start between two outputs.
        """
        self.check(input, state, return_state)
        x = input.mT if self.channels_last else input
        if x.dim() == 2:
            x, state = x[None], None if state is None else state[None]
        y = causal_conv1d(
            x,
            self.weight,
            self.bias,
            self.stride[0],
            self.dilation[0],
            self.groups,
            self.activation,
            state,
            self.channels_last,
        )
        y = y.mT if self.channels_last else y
        y = y[0] if input.dim() == 2 else y
        if not return_state:
            return y
        state = self.next_state(x, state)
        return y, state[0] if input.dim() == 2 else state

    def step(self, x_t: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step: x_t (N, in_channels) to y_t (N, out_channels), and the next state.

        state is None at the start, then what the last step (or chunk) returned. The steps equal
        the whole sequence; in float64 bit for bit, unless torch.nn's kernel is forced.

        Raises ValueError for a stride other than 1, a wrong shape or state.
        """
        if self.stride[0] != 1:
            raise ValueError(f"stride must be 1 for step(), got {self.stride[0]}")
        if x_t.dim() != 2 or x_t.shape[1] != self.in_channels:
            raise ValueError(f"x_t must be (N, {self.in_channels}), got {tuple(x_t.shape)}")
        time = 1 if self.channels_last else 2
        y, state = self(x_t.unsqueeze(time), state, return_state=True)
        return y.squeeze(time), state

    def next_state(self, x: Tensor, state: Tensor | None) -> Tensor:
        """The last `context` inputs of state followed by x (N, C, L)."""
        if x.shape[2] >= self.context:
            # A copy: a view would keep all of x alive.
            return x[..., x.shape[2] - self.context :].clone()
        if state is None:
            state = x.new_zeros(x.shape[0], x.shape[1], self.context)
        # Counted from the left: a slice [-0:] would be everything.
        return torch.cat([state, x], dim=2)[..., x.shape[2] :]

    def check(self, input: Tensor, state: Tensor | None, return_state: bool) -> None:
        """ValueError for an input or a state this layer cannot take."""
        channels, time = (-1, -2) if self.channels_last else (-2, -1)
        if input.dim() not in (2, 3) or input.shape[channels] != self.in_channels:
            shape = f"L, {self.in_channels}" if self.channels_last else f"{self.in_channels}, L"
            raise ValueError(f"input must be (N, {shape}) or ({shape}), got {tuple(input.shape)}")
        if state is not None and state.dim() != input.dim():
            raise ValueError(
                f"state must have {input.dim()} dimensions, as the input, got {tuple(state.shape)}"
            )
        if return_state and self.stride[0] > 1 and input.shape[time] % self.stride[0]:
            raise ValueError(
                f"input must have a length that is a multiple of stride = {self.stride[0]} "
                f"with return_state, got {input.shape[time]}"
            )

    def extra_repr(self) -> str:
        extra = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + extra + (", channels_last=True" if self.channels_last else "")


def single(name: str, value: int | tuple[int]) -> int:
    """An integer of at least 1, alone or in a tuple of one as torch.nn.Conv1d takes it."""
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    return positive(name, value)
