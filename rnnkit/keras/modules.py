"""Modules that torch and rnnkit lack: they take and give what Keras layers do.

Everything is (batch, time, features).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.rnn import Recurrent


class Sequential(nn.Sequential):
    """torch.nn.Sequential through which the rows' lengths go, as a mask goes through Keras layers.

    forward(input, lengths=None)
        input: what the first part takes.
        lengths: (B,), integer. How many steps of each row are valid, from the first on. Recurrent
            layers and GlobalAveragePool1d use them; a convolution, a pooling, Flatten and
            RepeatVector end them, as they end a mask in Keras. None: what a Masking or a
            MaskedEmbedding finds in its input, and without one all steps are valid.

    Raises ValueError if lengths are given and reach no part that uses them.
    """

    def forward(self, input: Any, lengths: Tensor | None = None) -> Any:
        unused = lengths is not None
        for name, part in self.named_children():
            if lengths is None and isinstance(part, Masking | MaskedEmbedding):
                lengths = part.lengths(name, input)
            if isinstance(part, USES_LENGTHS):
                unused = unused and lengths is None
                input = part(input, lengths)
            else:
                input = part(input)
            if isinstance(part, ENDS_LENGTHS):
                lengths = None
        if unused:
            raise ValueError(
                "lengths: expected None, since they reach no layer that uses them; a convolution, "
                "a pooling, Flatten and RepeatVector end them, as they end a mask in Keras"
            )
        return input


def valid_steps(lengths: Tensor, steps: int) -> Tensor:
    """(B, T), True where a row is valid."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def lengths_of(name: str, valid: Tensor) -> Tensor:
    """The lengths (B,) that say the same as valid (B, T); ValueError if none do."""
    lengths = valid.sum(1)
    if not torch.equal(valid, valid_steps(lengths, valid.shape[1])):
        raise ValueError(
            f"{name}: masked steps must follow all others in their row (pad_sequences has "
            'padding="post" for that), got a masked step before another'
        )
    return lengths


class Masking(nn.Module):
    """Zeroes the steps whose features all are `value`; they say where the rows end."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def valid(self, input: Tensor) -> Tensor:
        return (input != self.value).any(-1)

    def lengths(self, name: str, input: Tensor) -> Tensor:
        return lengths_of(name, self.valid(input))

    def forward(self, input: Tensor) -> Tensor:
        return input.masked_fill(~self.valid(input)[..., None], 0)

    def extra_repr(self) -> str:
        return f"{self.value}"


class MaskedEmbedding(nn.Embedding):
    """torch.nn.Embedding whose zeros say where the rows end."""

    def lengths(self, name: str, input: Tensor) -> Tensor:
        return lengths_of(name, input != 0)


MERGES: dict[str | None, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
    "sum": lambda forward, backward: (forward + backward,),
    "mul": lambda forward, backward: (forward * backward,),
    "ave": lambda forward, backward: ((forward + backward) / 2,),
    None: lambda forward, backward: (forward, backward),
}


class KerasRecurrent(nn.Module):
    """One layer of rnnkit, `rnn` (batch_first), with the outputs of a Keras layer.

    Args:
        return_sequences: whether to give the output of every step, or of the last valid one.
        return_state: whether to give the final states, too.
        go_backwards: run from the last step to the first, and give the outputs in that order.
        repeat_last: give the last valid output at the steps past a row's length, not zero.
        merge_mode: how two directions become one output: "concat", "sum", "mul", "ave" or None.
        untrainable: why this cannot train as Keras does; then a call in training mode is an error.

    forward(input, lengths=None): input (B, T, I), lengths (B,). Returns the output, (B, T, H) or
    (B, H) with H once or twice the units, or a tuple: both directions' outputs if merge_mode is
    None, then with return_state the states, each (B, units): h, for an LSTM c, first of the forward
    direction.
    """

    def __init__(
        self,
        rnn: Recurrent,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        repeat_last: bool = False,
        merge_mode: str | None = "concat",
        untrainable: str = "",
    ) -> None:
        super().__init__()
        self.rnn = rnn
        self.return_sequences, self.return_state = return_sequences, return_state
        self.go_backwards, self.repeat_last = go_backwards, repeat_last
        self.merge_mode, self.untrainable = merge_mode, untrainable

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Any:
        if self.training and self.untrainable:
            raise RuntimeError(self.untrainable)
        if lengths is not None:
            lengths = torch.as_tensor(lengths, device=input.device)
        output, state = self.run(input, lengths)
        states = state if isinstance(state, tuple) else (state,)
        if not self.return_sequences:
            output = states[0].transpose(0, 1).flatten(1)
        elif self.repeat_last and lengths is not None:
            valid = valid_steps(lengths, input.shape[1])
            output = torch.where(valid[..., None], output, states[0][0][:, None])
        concat = self.merge_mode == "concat"
        found = (output,) if concat else MERGES[self.merge_mode](*output.chunk(2, -1))
        if self.return_state:
            found += tuple(v for direction in zip(*states, strict=True) for v in direction)
        return found if len(found) > 1 else found[0]

    def run(self, input: Tensor, lengths: Tensor | None) -> Any:
        """The outputs in the order in which Keras gives them, and the states."""
        if not self.go_backwards:
            return self.rnn(input, lengths=lengths)
        input = input.flip(1)
        if lengths is None:
            return self.rnn(input)
        # Keras has the padding first then, where the state does not change.
        padding = input.shape[1] - lengths
        output, state = self.rnn(roll(input, -padding), lengths=lengths)
        return roll(output, padding), state

    def extra_repr(self) -> str:
        names = ("return_sequences", "return_state", "go_backwards")
        shown = [f"{name}=True" for name in names if getattr(self, name)]
        if self.merge_mode != "concat":
            shown.append(f"merge_mode={self.merge_mode!r}")
        return ", ".join(shown)


def roll(x: Tensor, shifts: Tensor) -> Tensor:
    """x (B, T, C) with each row rolled by its own number of steps (B,)."""
    steps = x.shape[1]
    index = (torch.arange(steps, device=x.device) - shifts[:, None]) % steps
    return x.gather(1, index[..., None].expand_as(x))


class TimeDistributed(nn.Module):
    """Calls a module with every step of (B, T, ...) as a row of its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.module(input.flatten(0, 1))
        return output.unflatten(0, input.shape[:2])


class RepeatVector(nn.Module):
    """(B, C) at each of n steps: (B, n, C)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, input: Tensor) -> Tensor:
        return input[:, None].expand(-1, self.n, -1)

    def extra_repr(self) -> str:
        return f"{self.n}"


class ChannelsLast:
    """Makes a torch.nn module for (B, C, T) one for (B, T, C)."""

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = super().forward(input.mT)  # type: ignore[misc]
        return output.mT


class Conv1d(ChannelsLast, nn.Conv1d):
    """Keras's padding="valid"."""


class SameConv1d(ChannelsLast, nn.Conv1d):
    """Keras's padding="same": ceil(T / stride) outputs; of an odd padding more is on the right."""

    def forward(self, input: Tensor) -> Tensor:
        (kernel,), (stride,), (dilation,) = self.kernel_size, self.stride, self.dilation
        padding = max(dilation * (kernel - 1) - (input.shape[1] - 1) % stride, 0)
        left = padding // 2
        return super().forward(nn.functional.pad(input, (0, 0, left, padding - left)))


class SpatialDropout1d(ChannelsLast, nn.Dropout1d):
    """One mask for all steps of a row."""


class MaxPool1d(ChannelsLast, nn.MaxPool1d):
    pass


class AvgPool1d(ChannelsLast, nn.AvgPool1d):
    pass


class GlobalMaxPool1d(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.amax(1)


class GlobalAveragePool1d(nn.Module):
    """The mean of the valid steps."""

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            return input.mean(1)
        lengths = torch.as_tensor(lengths, device=input.device)
        padding = ~valid_steps(lengths, input.shape[1])
        return input.masked_fill(padding[..., None], 0).sum(1) / lengths[:, None]


USES_LENGTHS = (KerasRecurrent, GlobalAveragePool1d)
# CausalConv1d, too, is an nn.Conv1d.
ENDS_LENGTHS = (nn.Conv1d, nn.Flatten, nn.MaxPool1d, nn.AvgPool1d, RepeatVector)
