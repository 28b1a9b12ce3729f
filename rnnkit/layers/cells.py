"""RNNCell, LSTMCell and GRUCell: one step of a recurrent cell, drop-in for torch.nn's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..functional import recurrent
from .base import Gated, check_flags, check_sizes
from .sequences import match


class RecurrentCell(Gated):
    """One step of a recurrent cell, as torch.nn.RNNCellBase.

    Args:
        input_size: features of the input, I.
        hidden_size: units of the state, H.
        bias: whether there are bias_ih and bias_hh.
        device, dtype: of the parameters.
        layer_norm, peephole, reset_after: as in Recurrent.

    forward(input, hx=None) -> state
        input: (B, I) or (I). hx and the result: (B, H) or (H), for an LSTM (h, c); zero if None.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        **options: bool,
    ) -> None:
        super().__init__()
        check_flags(bias=bias)
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        self.set_options(**options)
        self.add_direction("", input_size, {"device": device, "dtype": dtype})
        self.reset_parameters()

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        weights, name, states = self.weights(""), type(self).__name__, self.equations.states
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {input.size(-1)} "
                f"expected {self.input_size}"
            )
        match(weights.ih, input)
        state = (hx,) if isinstance(hx, Tensor) else hx
        if state is not None:
            self.check_state(input, state)
            state = tuple(v.view(1, -1, self.hidden_size) for v in state)
        _, last, _ = recurrent(input.view(1, -1, self.input_size), state, [weights], self.cell)
        new = tuple(v[0] if input.dim() == 2 else v[0, 0] for v in last)
        return new if states > 1 else new[0]

    def check_state(self, input: Tensor, state: Any) -> None:
        name, states = type(self).__name__, self.equations.states
        if not isinstance(state, tuple | list) or len(state) != states:
            raise RuntimeError(f"{name}: Expected hx to be {states} Tensors, got {len(state)}")
        for k, value in enumerate(state):
            if value.dim() not in (1, 2):
                raise ValueError(
                    f"{name}: Expected hx[{k}] to be 1D or 2D, got {value.dim()}D instead"
                    if states > 1
                    else f"{name}: Expected hidden to be 1D or 2D, got {value.dim()}D instead"
                )
            expected = (*input.shape[:-1], self.hidden_size)
            if tuple(value.shape) != expected:
                raise RuntimeError(
                    f"hidden{k} has inconsistent hidden_size or batch size: "
                    f"got {tuple(value.shape)}, expected {expected}"
                )
            match(input, value, "hx", "input")

    def extra_repr(self) -> str:
        shown = [f"{self.input_size}, {self.hidden_size}"]
        if not self.bias:
            shown.append(f"bias={self.bias}")
        if getattr(self, "nonlinearity", "tanh") != "tanh":
            shown.append(f"nonlinearity={self.nonlinearity}")
        return ", ".join(shown + self.shown_options())


class RNNCell(RecurrentCell):
    """One step of Elman's RNN, as torch.nn.RNNCell; nonlinearity is "tanh" or "relu"."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self.set_nonlinearity(nonlinearity)
        super().__init__(input_size, hidden_size, bias, *args, **kwargs)


class LSTMCell(RecurrentCell):
    """One step of an LSTM, as torch.nn.LSTMCell; hx and the result are (h, c)."""

    kind = "lstm"


class GRUCell(RecurrentCell):
    """One step of a GRU, as torch.nn.GRUCell."""

    kind = "gru"
