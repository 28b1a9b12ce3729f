"""RNN, LSTM and GRU: drop-in for torch.nn's, for every cell by one class."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..functional import packed, recurrent
from . import sequences
from .base import Gated, check_dropout, check_flags, check_sizes

State = Tensor | tuple[Tensor, ...]


class Recurrent(Gated):
    """One or more layers of a recurrent cell over a sequence, as torch.nn.RNNBase.

    Args:
        input_size: features of the input, I.
        hidden_size: units of the state, H.
        num_layers: layers stacked, each on the one before.
        bias: whether there are bias_ih and bias_hh.
        batch_first: whether input and output are (B, T, features) instead of (T, B, features).
        dropout: probability of dropout between layers, in training.
        bidirectional: whether every layer also runs backward; the outputs are concatenated.
        proj_size: features P of the projected h (LSTM only, Sak et al. 2014); 0 for none.
        device, dtype: of the parameters.
        layer_norm: normalise the gates' sum before the activation, h' = act(LN(x + r)) (RNN; Ba et
            al. 2016, equation 4).
        peephole: i and f see the old c, o the new one (LSTM; Gers and Schmidhuber 2000).
        reset_after: the reset gate acts after the recurrent product, as in torch and cuDNN; False
            has it act on h before (GRU; Cho et al. 2014).

    Parameters, for layer k and suffix "" or "_reverse": weight_ih_l{k} (G * H, features),
    weight_hh_l{k} (G * H, P or H), bias_ih_l{k}, bias_hh_l{k} (G * H), weight_hr_l{k} (P, H), and
    the cell's own: weight_ph_l{k} (3 * H; i, f, o), norm_weight_l{k}, norm_bias_l{k} (H).

    forward(input, hx=None, *, lengths=None, resets=None) -> output, state
        input: (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, or a PackedSequence.
        hx: the initial state, (layers * directions, B, H) or without B; for an LSTM (h_0, c_0);
            zero if None.
        lengths: (B,), integer, on any device. Steps past a row's length change nothing and output
            zero: the same as packing. Longer than T or negative is an error on the CPU; on a GPU,
            where looking would wait for the device, it counts as T or 0.
        resets: (T, B), bool ((B, T) with batch_first). Where True, the row begins a new sequence
            at that step, with a zero state.
        output: as input with features directions * (P or H).
        state: the final state, shaped as hx.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        **options: bool,
    ) -> None:
        super().__init__()
        check_flags(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_dropout(dropout, num_layers)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.dropout, self.proj_size = float(dropout), proj_size
        self.set_options(**options)
        self.check_projection()
        features, factory = input_size, {"device": device, "dtype": dtype}
        self._names = []
        for layer in range(num_layers):
            for suffix in self.suffixes(layer):
                self._names.append(self.add_direction(suffix, features, factory))
            features = (proj_size or hidden_size) * len(self.reverse)
        self.reset_parameters()

    @property
    def reverse(self) -> tuple[bool, ...]:
        """The directions of every layer; True runs backward in time."""
        return (False, True) if self.bidirectional else (False,)

    def suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}{'_reverse' if back else ''}" for back in self.reverse]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of every layer and direction, in torch.nn's order."""
        return [[getattr(self, name) for name in names] for names in self._names]

    def flatten_parameters(self) -> None:
        """Does nothing; torch.nn's layers have it, so callers may call it."""

    def check_projection(self) -> None:
        if not isinstance(self.proj_size, numbers.Integral) or isinstance(self.proj_size, bool):
            raise TypeError(
                f"proj_size should be of type int, got: {type(self.proj_size).__name__}"
            )
        if self.proj_size < 0:
            raise ValueError(
                "proj_size should be a positive integer or zero to disable projections, "
                f"got {self.proj_size}"
            )
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                "proj_size has to be smaller than hidden_size, "
                f"got proj_size={self.proj_size} and hidden_size={self.hidden_size}"
            )
        if self.proj_size and self.equations.states == 1:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, State]:
        weights = [[self.weights(v) for v in self.suffixes(k)] for k in range(self.num_layers)]
        call = sequences.enter(self, weights[0][0].ih, input, hx, lengths, resets)
        if call.packed is not None and call.lengths is not None:
            found = packed(call, weights, self.cell, self.reverse, self.dropout * self.training)
            if found is not None:
                return sequences.leave(self, call, *found)
        output, finals, D = call.input, [], len(self.reverse)
        for layer, directions in enumerate(weights):
            state = call.state and tuple(v[layer * D : (layer + 1) * D] for v in call.state)
            output, last, _ = recurrent(
                output, state, directions, self.cell, self.reverse, call.lengths, call.resets
            )
            finals.append(last)
            if self.dropout and layer < self.num_layers - 1:
                output = torch.nn.functional.dropout(output, self.dropout, self.training)
        return sequences.leave(self, call, output, tuple(map(torch.cat, zip(*finals, strict=True))))

    def extra_repr(self) -> str:
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False}
        for name, default in (defaults | {"dropout": 0.0, "bidirectional": False}).items():
            if getattr(self, name) != default:
                shown.append(f"{name}={getattr(self, name)}")
        return ", ".join(shown + self.shown_options())


class RNN(Recurrent):
    """Elman's RNN, as torch.nn.RNN: h' = act(W_ih x + b_ih + W_hh h + b_hh).

    Args:
        nonlinearity: act, "tanh" or "relu". As in torch.nn, it stands before bias.

    The others are Recurrent's.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self.set_nonlinearity(nonlinearity)
        super().__init__(input_size, hidden_size, num_layers, *args, **kwargs)


class LSTM(Recurrent):
    """LSTM, as torch.nn.LSTM: gates i, f, g, o; the state is (h, c). Arguments are Recurrent's."""

    kind = "lstm"


class GRU(Recurrent):
    """GRU, as torch.nn.GRU: gates r, z, n. Arguments are Recurrent's."""

    kind = "gru"
