"""What a causal convolution reads and gives: its arguments, and the shapes that follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..activations import ALL, check_activation, parts, positive
from ..dispatch import autocasts


class Convolution(NamedTuple):
    """The arguments of `rnnkit::causal_conv1d`; `ops.causal_conv1d.causal_conv1d` explains them."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    state: Tensor | None
    stride: int
    dilation: int
    groups: int
    activation: str | None
    channels_last: bool

    @property
    def context(self) -> int:
        """How many inputs before the first one an output reads."""
        return (self.weight.shape[2] - 1) * self.dilation

    @property
    def length(self) -> int:
        """The number of outputs, ceil(L / stride)."""
        return -(-self.x.shape[2] // self.stride)

    @property
    def channels(self) -> int:
        """The channels of the result."""
        return self.weight.shape[0] // parts(self.activation)


def like(x: Tensor, shape: tuple[int, int, int], channels_last: bool) -> Tensor:
    """Uninitialised (N, C, L) in the asked layout, for the real operator and the fake one alike."""
    N, C, L = shape
    return x.new_empty(N, L, C).mT if channels_last else x.new_empty(N, C, L)


def allocate(call: Convolution) -> Tensor:
    """Uninitialised y."""
    return like(call.x, (call.x.shape[0], call.channels, call.length), call.channels_last)


def allocate_gradients(call: Convolution, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Uninitialised dx, dstate, dw and db; empty where not wanted: inputs', parameters'."""
    x, none = call.x, (0, 0, 0)
    past = (*x.shape[:2], 0 if call.state is None else call.context)
    return (
        like(x, tuple(x.shape) if wanted[0] else none, call.channels_last),  # type: ignore[arg-type]
        x.new_empty(past if wanted[0] else none),
        x.new_empty(call.weight.shape if wanted[1] else none),
        x.new_empty(call.weight.shape[0] if wanted[1] and call.bias is not None else 0),
    )


def check(call: Convolution) -> None:
    """Raises, naming the argument, for the first one that does not fit the others."""
    x, weight, bias = call.x, call.weight, call.bias
    check_activation(call.activation, ALL)
    for name in ("stride", "dilation", "groups"):
        positive(name, getattr(call, name))
    if weight.dim() != 3 or 0 in weight.shape:
        raise ValueError(f"weight must be (O, C / groups, K), none 0, got {tuple(weight.shape)}")
    rows, channels = weight.shape[0], weight.shape[1] * call.groups
    if rows % call.groups:
        raise ValueError(f"groups must divide the {rows} rows of weight, got {call.groups}")
    if rows % parts(call.activation):
        raise ValueError(f"weight must have an even number of rows if gated, got {rows}")
    if x.dim() != 3 or x.shape[1] != channels:
        raise ValueError(f"x must be (N, {channels}, L), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must have a floating-point dtype, got {x.dtype}")
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"bias must be ({rows},), got {tuple(bias.shape)}")
    if call.state is not None:
        check_state(call.state, x, call.context)


def check_state(state: Tensor, x: Tensor, context: int) -> None:
    """ValueError unless state can stand before x."""
    expected = (x.shape[0], x.shape[1], context)
    if state.shape != expected or state.dtype != x.dtype or state.device != x.device:
        raise ValueError(
            f"state must be {expected} of {x.dtype} on {x.device}, as the input; "
            f"got {tuple(state.shape)} of {state.dtype} on {state.device}"
        )


def check_alike(call: Convolution) -> None:
    """TypeError or ValueError unless the parameters have x's dtype and device."""
    for name in ("weight", "bias"):
        value = getattr(call, name)
        if value is not None and value.dtype != call.x.dtype:
            raise TypeError(f"{name} must have x's dtype {call.x.dtype}, got {value.dtype}")
        if value is not None and value.device != call.x.device:
            raise ValueError(f"{name} must be on x's device {call.x.device}, got {value.device}")


def cast(call: Convolution, dtype: torch.dtype) -> Convolution:
    """The same with every tensor in another dtype."""
    x, weight, bias, state = (v if v is None else v.to(dtype) for v in call[:4])
    return call._replace(x=x, weight=weight, bias=bias, state=state)  # type: ignore[arg-type]


def dtype_of(x: Tensor) -> torch.dtype:
    """The dtype in which x's operator computes: autocast's where that is on; it leaves float64
    alone.
    """
    if x.dtype == torch.float64 or not autocasts(x.device):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)
