"""Keras's recurrent layers as rnnkit's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import torch
from torch import Tensor

from ..layers.rnn import GRU, LSTM, RNN, Recurrent
from .modules import KerasRecurrent, SpatialDropout1d
from .weights import activation_name, check, copy, dtype, refuse


class Kind(NamedTuple):
    """A cell's layer here, its gates as indices into Keras's, and the activations it may have."""

    layer: type[Recurrent]
    gates: tuple[int, ...]
    activations: dict[str, tuple[str, ...]]


GATED: dict[str, tuple[str, ...]] = {"activation": ("tanh",), "recurrent_activation": ("sigmoid",)}
CELLS = {
    keras.layers.SimpleRNNCell: Kind(RNN, (0,), {"activation": ("tanh", "relu")}),
    keras.layers.LSTMCell: Kind(LSTM, (0, 1, 2, 3), GATED),
    # Keras has z before r.
    keras.layers.GRUCell: Kind(GRU, (1, 0, 2), GATED),
}
LAYERS = (keras.layers.RNN, keras.layers.SimpleRNN, keras.layers.LSTM, keras.layers.GRU)
# What both directions of one layer must have in common.
COMMON = (
    "__class__",
    "units",
    "use_bias",
    "activation",
    "recurrent_activation",
    "reset_after",
    "dropout",
    "recurrent_dropout",
    "variable_dtype",
)


def recurrent(layer: Any) -> dict[str, Any]:
    """A layer of one direction, after a dropout of its input if it has one."""
    if layer.zero_output_for_mask and not layer.return_sequences:
        refuse(layer, "zero_output_for_mask needs return_sequences=True")
    module = KerasRecurrent(
        rnn([layer]),
        layer.return_sequences,
        layer.return_state,
        layer.go_backwards,
        repeat_last=not (layer.zero_output_for_mask or layer.go_backwards),
        untrainable=untrainable(layer, layer.cell),
    )
    rate = layer.cell.dropout
    before = {"dropout": SpatialDropout1d(rate)} if rate and not module.untrainable else {}
    return before | {"": module}


def bidirectional(layer: Any) -> dict[str, Any]:
    directions = [layer.forward_layer, layer.backward_layer]
    for direction in directions:
        if type(direction) not in LAYERS:
            refuse(layer, f"expected {names(LAYERS)} in it, got {type(direction).__name__}")
        check(direction)
    if directions[0].go_backwards:
        refuse(layer, "go_backwards must be False in its forward layer, got True")
    module = KerasRecurrent(
        rnn(directions),
        layer.return_sequences,
        layer.return_state,
        merge_mode=layer.merge_mode,
        untrainable=untrainable(layer, directions[0].cell),
    )
    return {"": module}


def names(kinds: Any) -> str:
    return ", ".join(kind.__name__ for kind in kinds)


def rnn(directions: list[Any]) -> Recurrent:
    """rnnkit's layer of one or two directions, with the weights of their cells."""
    cells = [direction.cell for direction in directions]
    first = cells[0]
    for direction, cell in zip(directions, cells, strict=True):
        check_cell(direction, cell)
        for name in COMMON:
            if getattr(cell, name, None) != getattr(first, name, None):
                refuse(direction, f"its cell differs from the other direction's in {name}")
    kind = CELLS[type(first)]
    options: dict[str, Any] = {}
    if kind.layer is RNN:
        options["nonlinearity"] = activation_name(first)
        options["recurrent_dropout"] = first.recurrent_dropout
    elif kind.layer is GRU:
        options["reset_after"] = first.reset_after
    made = kind.layer(
        first.kernel.shape[0],
        first.units,
        bias=first.use_bias,
        batch_first=True,
        bidirectional=len(cells) > 1,
        dtype=dtype(first),
        **options,
    )
    for cell, suffix in zip(cells, made.suffixes(0), strict=True):
        copy_cell(made, suffix, cell, kind.gates)
    return made


def check_cell(layer: Any, cell: Any) -> None:
    """ValueError unless there is a cell here with these equations."""
    if type(cell) not in CELLS:
        refuse(layer, f"its cell must be one of {names(CELLS)}, got {type(cell).__name__}")
    check(cell)
    for argument, allowed in CELLS[type(cell)].activations.items():
        name = activation_name(cell, argument)
        if name not in allowed:
            refuse(layer, f"{argument} must be {' or '.join(allowed)}, got {name}")


def copy_cell(made: Recurrent, suffix: str, cell: Any, gates: tuple[int, ...]) -> None:
    """Copies the weights of one direction: Keras's are (inputs, gates), ours (gates, inputs)."""

    def put(name: str, variable: Any, change: Callable[[Tensor], Tensor]) -> None:
        def reordered(v: Tensor) -> Tensor:
            blocks = change(v).chunk(len(gates))
            return torch.cat([blocks[k] for k in gates])

        copy(getattr(made, name + suffix), variable, reordered)

    put("weight_ih", cell.kernel, lambda v: v.T)
    put("weight_hh", cell.recurrent_kernel, lambda v: v.T)
    if not cell.use_bias:
        return
    if len(cell.bias.shape) == 2:
        put("bias_ih", cell.bias, lambda v: v[0])
        put("bias_hh", cell.bias, lambda v: v[1])
    else:
        put("bias_ih", cell.bias, lambda v: v)
        # Keras has one bias: to train two would double its steps.
        getattr(made, "bias_hh" + suffix).detach().zero_()
        getattr(made, "bias_hh" + suffix).requires_grad_(False)


def untrainable(layer: Any, cell: Any) -> str:
    """Why a layer's dropout has no equal here, if so; without training it changes nothing."""
    rates = {name: getattr(cell, name) for name in ("dropout", "recurrent_dropout")}
    if getattr(cell, "dropout_mask_count", 1) > 1:
        several = "gate"
    elif type(layer) is keras.layers.Bidirectional:
        # rnnkit's recurrent_dropout, too, has a mask for each direction.
        several = "direction"
        del rates["recurrent_dropout"]
    else:
        return ""
    shown = ", ".join(f"{name}={rate}" for name, rate in rates.items() if rate)
    if not shown:
        return ""
    return (
        f"{type(layer).__name__} {layer.name!r}: {shown} draws a mask for each {several} in "
        "training, which has no equal here; set it to 0 in the Keras layer's cell and convert "
        "again, or call eval()"
    )
