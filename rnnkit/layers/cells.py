"""RNNCell, LSTMCell and GRUCell: one step of a recurrent cell, drop-in for torch.nn's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..cpu.step import Step, has_step
from ..functional import recurrent
from ..projection import Noise
from .base import Gated
from .options import NormOptions, check_sizes
from .sequences import match, unpack_state


class RecurrentCell(Gated):
    """One step of a recurrent cell, as torch.nn.RNNCellBase.

    Args:
        input_size: features of the input, I.
        hidden_size: units of the state, H.
        bias: whether there are bias_ih and bias_hh.
        device, dtype: of the parameters.
        layer_norm, peephole, reset_after, zoneout, num_heads, forget_bias: as in Recurrent.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        layer_norm: bool | NormOptions = False,
        peephole: bool = False,
        reset_after: bool = True,
        zoneout: float | Sequence[float] = 0.0,
        num_heads: int = 1,
        forget_bias: float | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        self.set_options(layer_norm, peephole, reset_after, zoneout, num_heads, forget_bias)
        self.add_direction("", input_size, {"device": device, "dtype": dtype})
        if not bias:
            # torch.nn's cells have them as None, where its layers lack them.
            self.register_parameter("bias_ih", None)
            self.register_parameter("bias_hh", None)
        self.reset_parameters()
        plain = has_step(self.cell) and num_heads == 1 and not any(self.rates)
        self.native_step = Step(self.cell) if plain else None

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """One step.

        Args:
            input: (B, I) or (I).
            hx: the state, (B, H) or (H), for an LSTM (h, c); zero if None.

        Returns:
            The next state, as hx.
        """
        if self.native_step is not None:
            new = self.native_step(input, hx, self._parameters)
            if new is not None:
                return new
        weights, name, states = self.weights(""), type(self).__name__, self.equations.states
        if not isinstance(input, Tensor):
            raise TypeError(f"{name}: input should be a Tensor, got {type(input)}")
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {input.size(-1)} "
                f"expected {self.input_size}"
            )
        match(weights.ih, input)
        state = unpack_state(self, hx)
        if state is not None:
            self.check_state(input, state)
            state = tuple(v.view(1, -1, self.hidden_size) for v in state)
        noise = Noise(self.rates, None, self.training)
        x = input.view(1, -1, self.input_size)
        _, last, _ = recurrent(x, state, [weights], self.cell, noise=noise)
        new = tuple(v[0] if input.dim() == 2 else v[0, 0] for v in last)
        return new if states > 1 else new[0]

    def check_state(self, input: Tensor, state: tuple[Tensor, ...]) -> None:
        """Raises, in torch.nn's words, unless the states fit the input."""
        for k, value in enumerate(state):
            which = f"{type(self).__name__}: Expected {f'hx[{k}]' if len(state) > 1 else 'hidden'}"
            if value.dim() not in (1, 2):
                raise ValueError(f"{which} to be 1D or 2D, got {value.dim()}D instead")
            if value.dim() != input.dim():
                raise RuntimeError(f"{which} to be {input.dim()}D as input, got {value.dim()}D")
            if value.shape[:-1] != input.shape[:-1]:
                raise RuntimeError(
                    f"Input batch size {input.size(0)} doesn't match "
                    f"hidden{k} batch size {value.size(0)}"
                )
            if value.size(-1) != self.hidden_size:
                raise RuntimeError(
                    f"hidden{k} has inconsistent hidden_size: "
                    f"got {value.size(-1)}, expected {self.hidden_size}"
                )
            match(input, value, "hx", "input")

    def extra_repr(self) -> str:
        shown = [f"{self.input_size}, {self.hidden_size}"]
        if self.bias is not True:
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
