"""The layers without modules: the operators, and one recurrent layer in all its directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import dispatch, onnx
from .cells import Cell, find
from .ops.causal_conv1d import causal_conv1d
from .ops.layer import Whole, by_direction, layer
from .ops.layer_norm import layer_norm
from .ops.scan import scan
from .ops.wavenet import wavenet
from .projection import (
    Noise,
    Weights,
    check_own,
    prepare,
    project,
    projection_of,
    with_groups,
)
from .torch_kernels import scan as torch_kernels

if TYPE_CHECKING:
    from .layers.sequences import Call

__all__ = [
    "Noise",
    "Result",
    "Weights",
    "causal_conv1d",
    "layer_norm",
    "recurrent",
    "scan",
    "wavenet",
]


QUIET = Noise()


class Result(NamedTuple):
    """output (T, B, D * H); last, each state (D, B, H), a tensor of its own; cells (T, B, D * H) if
    asked for.
    """

    output: Tensor
    last: tuple[Tensor, ...]
    cells: Tensor | None


def recurrent(
    input: Tensor,
    state: tuple[Tensor, ...] | None,
    weights: Sequence[Weights],
    cell: str,
    reverse: Sequence[bool] = (False,),
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    noise: Noise = QUIET,
    return_cell_states: bool = False,
) -> Result:
    """One recurrent layer: the input's projection, then the scan, for all directions at once.

    Args:
        input: (T, B, I).
        state: the initial states, each (D, B, H), h first ((D, B, P) for a projected h); None is
            zero.
        weights: of each of the D directions.
        cell: the name of a registered cell.
        reverse: of each direction, whether it runs backward in time.
        lengths: (B,), integer. A row past its length keeps its states and outputs zero. The input
            there must be finite, or the gradient of ih is not; the layers see to that.
        resets: (T, B), bool. Where True, the row starts a new sequence at that step.
        noise: zoneout and recurrent dropout.
        return_cell_states: whether the second state of every step is wanted too.
    """
    asked = extras(lengths, resets, noise, return_cell_states)
    backend = chosen(input, state, weights, cell, reverse, asked)
    if backend is torch_kernels:
        output, last = torch_kernels.layer(input, state, weights, cell, reverse)
        # Copies, since some of these kernels read their own again in backward.
        return Result(output, tuple(v.clone() for v in last), None)
    if backend is onnx:
        found = onnx.layer(input, state, weights, cell, reverse, lengths, asked)
        if found is not None:
            return Result(*found, None)
    equations = find(cell)
    check_own(weights, equations)
    more: Any = (state, weights, equations, reverse, lengths, resets, noise)
    (output, cells, h, *others), h0 = projected_scan(backend, input, weights, equations, more)
    if weights[0].hr is not None:
        hr = torch.stack([w.hr for w in weights if w.hr is not None]).to(output.dtype)
        output = output.unflatten(2, (len(weights), -1))
        output = torch.einsum("tbnh,nph->tbnp", output, hr).flatten(2)
        h = h @ hr.mT
        if h0 is not None and input.shape[0] == 0:
            h = h0.to(h.dtype, copy=True)
        elif h0 is not None and lengths is not None:
            h = torch.where((lengths <= 0)[:, None], h0.to(h.dtype), h)
    shown = cells[0].flatten(2) if return_cell_states else None
    return Result(output, (h, *others), shown)


def projected_scan(
    backend: Any, input: Tensor, weights: Sequence[Weights], cell: Cell, more: Any
) -> tuple[Sequence[Tensor], Tensor | None]:
    """What the scan gives, as `by_direction` has it, and the projected h0 if there is one; more:
    the arguments of `prepare` after b. All in one, where the backend has that.
    """
    whole: Whole | None = getattr(backend, "WHOLE", None)
    if whole is not None and takes_projection(input, weights[0]):
        alone = projection_of(input, weights, cell, whole)
        if alone is not None:
            projection, x, b = alone
            inputs, h0 = prepare(x, b, *more)
            return layer(whole, projection, inputs), h0
    inputs, h0 = prepare(*project(input, weights, cell), *more)
    run = onnx.scan if backend is onnx else scan
    output, cells, *states = by_direction(*run(*with_groups(inputs)), len(weights))
    return (output, cells, *(v.clone() for v in states)), h0


def packed(
    call: Call,
    layers: Sequence[Sequence[Weights]],
    cell: str,
    reverse: Sequence[bool],
    dropout: float,
    asked: Sequence[str],
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """A packed batch through all layers without padding it, where dispatch says so; else None."""
    if call.packed is None:
        return None
    if chosen(call.input, call.state, layers[0], cell, reverse, asked) is not torch_kernels:
        return None
    data, sizes = call.packed.data, call.packed.batch_sizes
    return torch_kernels.packed(data, sizes, call.state, layers, cell, dropout)


def extras(
    lengths: Tensor | None, resets: Tensor | None, noise: Noise, return_cell_states: bool
) -> list[str]:
    """What is asked of a layer that torch.nn lacks."""
    asked = {
        "lengths": lengths is not None,
        "resets": resets is not None,
        "zoneout": bool(noise.zoneout),
        "recurrent dropout": noise.dropout is not None,
        "cell states": return_cell_states,
    }
    return [name for name, present in asked.items() if present]


def chosen(
    input: Tensor,
    state: tuple[Tensor, ...] | None,
    weights: Sequence[Weights],
    cell: str,
    reverse: Sequence[bool],
    asked: Sequence[str],
) -> Any:
    """The backend's module for this layer, as dispatch decides; None for a trace, or `onnx`."""
    # A trace must hold the operator, which chooses where it runs.
    if dispatch.tracing(input):
        return onnx if torch.onnx.is_in_onnx_export() else None
    return dispatch.settle(layer_problem(input, state, weights, cell, reverse, asked))


def takes_projection(input: Tensor, weights: Weights) -> bool:
    """Whether a backend that computes x by itself may do so here: in eager mode, to a dtype."""
    if (
        not dispatch.plain(input, weights.ih, weights.hh)
        or dispatch.autocasts(input.device)
        or input.numel() == 0
    ):
        return False
    return input.dtype == weights.ih.dtype


def layer_problem(
    input: Tensor,
    state: tuple[Tensor, ...] | None,
    weights: Sequence[Weights],
    cell: str,
    reverse: Sequence[bool],
    asked: Sequence[str],
) -> dispatch.Problem:
    """The problem that a layer hands to dispatch, with all that torch.nn's kernels lack."""
    first, equations = weights[0], find(cell)
    heads = first.heads(equations)
    more = {
        "heads": heads > 1,
        "torch.func transforms": torch._C._are_functorch_transforms_active(),
        "uniform autocast": dispatch.autocasts(input.device),
        "empty sequences": input.numel() == 0,
        "such directions": tuple(reverse) not in ((False,), (True,), (False, True)),
    }
    T, B, _ = input.shape
    return dispatch.Problem(
        cell,
        T,
        B,
        len(weights) * heads,
        first.ih.shape[0] // equations.gates // heads,
        input.dtype,
        input.device,
        # Asked first: to list all parameters takes the host longer.
        backward=torch.is_grad_enabled()
        and dispatch.recorded(input, *(state or ()), *(v for w in weights for v in w.all)),
        runs=len(reverse),
        forward_mode=dispatch.in_forward_mode(),
        extras=(*asked, *(name for name, present in more.items() if present)),
    )
