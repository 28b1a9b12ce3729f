"""RNN, LSTM and GRU: drop-in for torch.nn's, for every cell by one class."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..chunks import recurrent_in_chunks
from ..cpu.step import Step, has_step
from ..functional import extras, packed, recurrent
from ..onnx import dropout
from ..projection import Noise
from . import sequences
from .base import Gated
from .options import (
    NormOptions,
    check_dropout,
    check_flags,
    check_rate,
    check_save_memory,
    check_sizes,
)

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
        layer_norm: True or NormOptions: layer normalisation as Ba et al. 2016. RNN: h' = act(LN(x +
            r)). LSTM: gates = LN(x) + LN(r) + b, h' = o * tanh(LN(c')). GRU: LN(x) + b, LN(r) + b.
        peephole: i and f see the old c, o the new one (LSTM; Gers and Schmidhuber 2000).
        reset_after: the reset gate acts after the recurrent product, as in torch and cuDNN; False
            has it act on h before (GRU; Cho et al. 2014).
        zoneout: probability with which an element of h keeps its old value at a step, in training;
            in eval the old value counts with this share (Krueger et al. 2017). A pair gives c a
            rate of its own (LSTM).
        recurrent_dropout: probability of dropout on h before the recurrent product, in training:
            one mask for a whole sequence (Gal and Ghahramani 2016).
        weight_dropout: probability of dropout on weight_hh, once a call, in training (Merity et al.
            2018).
        num_heads: blocks of the recurrence: unit k of H sees only the units of its own block.
        forget_bias: initial value of the forget gate's bias (LSTM); None leaves torch.nn's.
        save_memory: save states for backward at every save_memory-th step only, and compute the
            others again there: saves all but about 1 / save_memory of a layer's memory. 0: at every
            step. It has no effect under torch.compile and torch.func.

    Parameters, for layer k and suffix "" or "_reverse": weight_ih_l{k} (G * H, features),
    weight_hh_l{k} (G * H, P or H / num_heads), bias_ih_l{k}, bias_hh_l{k} (G * H), weight_hr_l{k}
    (P, H), weight_ph_l{k} (3 * H; i, f, o). Of the norms, RNN: norm_weight_l{k} and norm_bias_l{k}
    (H); LSTM and GRU: norm_ih_weight_l{k}, norm_ih_bias_l{k}, norm_hh_weight_l{k} and
    norm_hh_bias_l{k} (G * H); LSTM: norm_c_weight_l{k} and norm_c_bias_l{k} (H).
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
        *,
        layer_norm: bool | NormOptions = False,
        peephole: bool = False,
        reset_after: bool = True,
        zoneout: float | Sequence[float] = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        num_heads: int = 1,
        forget_bias: float | None = None,
        save_memory: int = 0,
    ) -> None:
        super().__init__()
        check_flags(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_dropout(dropout, num_layers)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.dropout, self.proj_size = float(dropout), proj_size
        self.set_options(layer_norm, peephole, reset_after, zoneout, num_heads, forget_bias)
        self.check_projection()
        check_rate("recurrent_dropout", recurrent_dropout)
        check_rate("weight_dropout", weight_dropout)
        check_save_memory(save_memory)
        if recurrent_dropout and proj_size:
            raise ValueError(
                "recurrent_dropout does not go with proj_size, got "
                f"recurrent_dropout={recurrent_dropout} and proj_size={proj_size}"
            )
        self.recurrent_dropout, self.weight_dropout = recurrent_dropout, weight_dropout
        self.save_memory = save_memory
        features, factory = input_size, {"device": device, "dtype": dtype}
        self._all_weights = []
        for layer in range(num_layers):
            for suffix in self.suffixes(layer):
                self._all_weights.append(self.add_direction(suffix, features, factory))
            features = (proj_size or hidden_size) * len(self.reverse)
        plain = has_step(self.cell) and not proj_size and num_heads == 1 and not any(self.rates)
        self.steps = [Step(self.cell, f"_l{layer}") for layer in range(num_layers)] if plain else []
        self.reset_parameters()

    @property
    def reverse(self) -> tuple[bool, ...]:
        """The directions of every layer; True runs backward in time."""
        return (False, True) if self.bidirectional else (False,)

    def suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}{'_reverse' if back else ''}" for back in self.reverse]

    @property
    def mode(self) -> str:
        """What torch.nn calls the kind of layer: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU"."""
        return self.kind.upper()

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of every layer and direction, in torch.nn's order."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

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
        return_cell_states: bool = False,
    ) -> Any:
        """Runs the layers over a sequence.

        Args:
            input: (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, or a PackedSequence.
            hx: the initial state, (layers * directions, B, H) or without B; for an LSTM (h_0, c_0);
                zero if None.
            lengths: (B,), integer, on any device. Steps past a row's length change nothing and
                output zero: the same as packing. Longer than T or negative is an error on the CPU;
                on a GPU, where looking would wait for the device, it counts as T or 0.
            resets: (T, B), bool ((B, T) with batch_first). Where True, the row begins a new
                sequence at that step, with a zero state.
            return_cell_states: whether to return the last layer's c of every step too (LSTM).

        Returns:
            output, as input with features directions * (P or H); the final state, shaped as hx; and
            with return_cell_states c, as input with features directions * H.
        """
        if return_cell_states and self.equations.states == 1:
            raise ValueError(f"return_cell_states: {type(self).__name__} has no cell state")
        weights = [[self.weights(v) for v in self.suffixes(k)] for k in range(self.num_layers)]
        call = sequences.enter(self, weights[0][0].ih, input, hx, lengths, resets)
        noises = [self.noise(call.input) for _ in weights]
        if call.packed is not None and call.lengths is not None and not self.save_memory:
            asked = extras(None, None, noises[0], return_cell_states)
            rate = self.dropout * self.training
            found = packed(call, weights, self.cell, self.reverse, rate, asked)
            if found is not None:
                return sequences.leave(self, call, *found)
        output, finals, D, cells = call.input, [], len(self.reverse), None
        pieces = partial(recurrent_in_chunks, self.save_memory)
        run = pieces if self.save_memory else recurrent
        for layer, directions in enumerate(weights):
            state = call.state and tuple(v[layer * D : (layer + 1) * D] for v in call.state)
            output, last, cells = run(
                output,
                state,
                directions,
                self.cell,
                self.reverse,
                call.lengths,
                call.resets,
                noises[layer],
                return_cell_states and layer == self.num_layers - 1,
            )
            finals.append(last)
            if self.dropout and layer < self.num_layers - 1:
                output = dropout(output, self.dropout, self.training)
        final = finals[0]
        if len(finals) > 1:
            final = tuple(map(torch.cat, zip(*finals, strict=True)))
        return sequences.leave(self, call, output, final, cells)

    def noise(self, input: Tensor) -> Noise:
        """What regularises one layer's recurrence in one call."""
        d, rate = None, self.recurrent_dropout
        if rate and self.training:
            size = self.hidden_size // self.num_heads
            ones = input.new_ones(input.shape[1], len(self.reverse) * self.num_heads, size)
            d = dropout(ones, rate, True)
        return Noise(self.rates, d, self.training)

    def step(self, input: Tensor, hx: State | None = None) -> tuple[Tensor, State]:
        """One step of a sequence that comes piece by piece, as the whole sequence would give it.

        Args:
            input: (B, I), or (I) unbatched.
            hx: the state, shaped as in forward; zero if None. Any call's final state will do.

        Returns:
            The output of this step, (B, P or H) or (P or H), and the new state.
        """
        if self.bidirectional:
            raise ValueError("step: a bidirectional layer needs the whole sequence at once")
        for name in ("recurrent_dropout", "weight_dropout"):
            if self.training and getattr(self, name):
                raise RuntimeError(
                    f"step: {name}={getattr(self, name)} has one mask for a whole sequence in "
                    "training; call eval() first"
                )
        found = self.native_step(input, hx)
        if found is not None:
            return found
        if not isinstance(input, Tensor) or input.dim() not in (1, 2):
            given = f"{input.dim()}-D" if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"step: expected input (B, I) or (I), got {given}")
        time = 1 if self.batch_first and input.dim() == 2 else 0
        output, state = self(input.unsqueeze(time), hx)
        return output.squeeze(time), state

    def native_step(self, input: Tensor, hx: State | None) -> tuple[Tensor, State] | None:
        """`step` the shortest way, through kernels for single steps; None where they do not fit."""
        if torch.is_grad_enabled() or not self.steps:
            return None
        states = (hx,) if isinstance(hx, Tensor) else hx
        given: list[Any] = [None] * len(self.steps)
        if states is not None:
            if any(not isinstance(v, Tensor) or v.shape[0] != len(given) for v in states):
                return None
            given = list(zip(*states, strict=True))
            given = [v if len(v) > 1 else v[0] for v in given]
        news = []
        for step, old in zip(self.steps, given, strict=True):
            new = step(input, old, self._parameters)
            if new is None:
                return None
            news.append(new if isinstance(new, tuple) else (new,))
            input = news[-1][0]
        final = tuple(map(torch.stack, zip(*news, strict=True)))
        return input, sequences.pack_state(final)

    def extra_repr(self) -> str:
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False}
        shown += self.shown(defaults | {"dropout": 0.0, "bidirectional": False})
        more = {"recurrent_dropout": 0.0, "weight_dropout": 0.0, "save_memory": 0}
        return ", ".join(shown + self.shown_options() + self.shown(more))


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
