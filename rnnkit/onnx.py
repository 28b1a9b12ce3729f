"""Recurrent layers while `torch.onnx.export` records them: ONNX's own operators, or a loop of ONNX.

ONNX knows none of rnnkit's operators. So while `torch.onnx.export` runs, and only then, a layer is
recorded as ONNX's LSTM, GRU or RNN (https://onnx.ai/onnx/operators/) where that computes the same,
and else as ONNX's Scan of a step of the reference. docs/onnx.md has the list.

`torch.onnx.export` itself needs onnx and onnxscript; this module needs torch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import export
from .cells import find
from .dispatch import autocasts
from .projection import Weights

Tensors = tuple[Tensor, ...]


class Operator(NamedTuple):
    """One of ONNX's operators for a whole layer, and how it computes a cell of ours.

    order: our gates, in the operator's order. attributes: lists hold one value for each direction.
    """

    name: str
    order: tuple[int, ...]
    attributes: dict[str, Any]


OPERATORS = {
    "rnn_tanh": Operator("RNN", (0,), {}),
    "rnn_relu": Operator("RNN", (0,), {"activations": ["Relu"]}),
    "lstm": Operator("LSTM", (0, 3, 1, 2), {}),  # i f g o to i o f c
    "lstm_peephole": Operator("LSTM", (0, 3, 1, 2), {}),
    "gru": Operator("GRU", (1, 0, 2), {"linear_before_reset": 1}),  # r z n to z r h
    "gru_before": Operator("GRU", (1, 0, 2), {}),
}
PEEPHOLES = (0, 2, 1)  # i f o to i o f
DIRECTIONS = {(False,): "forward", (True,): "reverse", (False, True): "bidirectional"}
# The operators have others, too, but runtimes lack them.
DTYPES = (torch.float32, torch.float16)


def layer(
    input: Tensor,
    state: Tensors | None,
    weights: Sequence[Weights],
    cell: str,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    asked: Sequence[str],
) -> tuple[Tensor, Tensors] | None:
    """output (T, B, D * H) and the final states, each (D, B, H), by one operator of ONNX.

    Arguments are those of `functional.recurrent`, and all that is asked of the layer beside. None
    where ONNX has no operator for it.
    """
    if not has_operator(input, weights, cell, reverse, asked):
        return None
    operator, states = OPERATORS[cell], find(cell).states
    (T, B, _), D, H = input.shape, len(weights), weights[0].hh.shape[1]
    tensors = [
        input,
        stacked([w.ih for w in weights], operator.order),
        stacked([w.hh for w in weights], operator.order),
        biases(weights, operator.order),
        None if lengths is None else lengths.int(),
        *(state or (None,) * states),
        *(stacked(each, PEEPHOLES) for each in zip(*(w.own for w in weights), strict=True)),
    ]
    attributes: dict[str, Any] = {"hidden_size": H, "direction": DIRECTIONS[tuple(reverse)]}
    for name, value in operator.attributes.items():
        attributes[name] = value * D if isinstance(value, list) else value
    shapes = [(T, D, B, H), *[(D, B, H)] * states]
    dtypes = [input.dtype] * len(shapes)
    found = torch.onnx.ops.symbolic_multi_out(
        operator.name, tensors, attributes, dtypes=dtypes, shapes=shapes
    )
    # Where there are no values to look at, they are on the CPU.
    output, *last = (v.to(input.device) for v in found)
    if state is not None and lengths is not None:
        # ONNX does not say what comes of a row without steps.
        none = (lengths == 0)[:, None]
        last = [torch.where(none, old, new) for old, new in zip(state, last, strict=True)]
    output = output.squeeze(1) if D == 1 else output.transpose(1, 2).flatten(2)
    return output, tuple(last)


def has_operator(
    input: Tensor,
    weights: Sequence[Weights],
    cell: str,
    reverse: Sequence[bool],
    asked: Sequence[str],
) -> bool:
    """Whether one of ONNX's operators computes the layer."""
    return (
        cell in OPERATORS
        and tuple(reverse) in DIRECTIONS
        and all(name == "lengths" for name in asked)
        and weights[0].hr is None
        and weights[0].heads(find(cell)) == 1
        and input.dtype in DTYPES
        and not autocasts(input.device)
    )


def stacked(tensors: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """(D, ...) of each direction's tensor, the equal parts of its first dimension in this order."""
    v = torch.stack(list(tensors))
    if len(order) == 1:
        return v
    index = torch.tensor(order, device=v.device)
    return v.unflatten(1, (len(order), -1)).index_select(1, index).flatten(1, 2)


def biases(weights: Sequence[Weights], order: Sequence[int]) -> Tensor | None:
    """(D, 2 * G * H): the input's biases, then the recurrent ones."""
    kinds = zip(*((w.b_ih, w.b_hh) for w in weights), strict=True)
    found = [stacked(each, order) for each in kinds if None not in each]
    return torch.cat(found, 1) if found else None


def scan(*values: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.scan.scan` as ONNX's Scan, whose body is one step of the reference."""
    # A loop through which gradients might flow takes torch's exporter longer.
    return export.scan(*(v.detach() if isinstance(v, Tensor) else v for v in values))


def dropout(v: Tensor, rate: float, training: bool) -> Tensor:
    """torch.nn.functional.dropout, drawn anew by every run of an ONNX model, too: ONNX's Dropout of
    a constant is computed when the model is written, and runtimes leave out the others.
    """
    if not training or not torch.onnx.is_in_onnx_export():
        return torch.nn.functional.dropout(v, rate, training)
    return torch.where(torch.rand(v.shape, device=v.device) < rate, 0, v / (1 - rate))
