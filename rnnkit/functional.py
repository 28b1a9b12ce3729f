"""The layers without modules: one recurrent layer in all its directions, as a function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import dispatch, torch_kernels
from .cells import Cell, find
from .ops.scan import scan
from .ops.sequence import Inputs, backward_groups, fresh, starts

if TYPE_CHECKING:
    from .layers.sequences import Call

__all__ = ["Weights", "recurrent", "scan"]


class Weights(NamedTuple):
    """The parameters of one direction of one layer, in torch.nn's shapes.

    ih (G * H, I), hh (G * H, H), b_ih and b_hh (G * H) or None, hr (P, H) for a projection or
    None, and the cell's own parameters, each (rows * H).
    """

    ih: Tensor
    hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    hr: Tensor | None = None
    own: tuple[Tensor, ...] = ()


class Result(NamedTuple):
    """output (T, B, D * H); last, each state (D, B, H); cells (S - 1, T, B, D, H) or None."""

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
    """
    if on_torch(input, state, weights, cell, reverse, lengths, resets):
        output, last = torch_kernels.layer(input, state, weights, cell)
        return Result(output, last, None)
    inputs, h0 = prepare(input, state, weights, find(cell), reverse, lengths, resets)
    output, cells, final = scan(*inputs)
    h, *others = final.transpose(1, 2)
    if weights[0].hr is not None:
        hr = torch.stack([w.hr for w in weights if w.hr is not None]).to(output.dtype)
        output = torch.einsum("tbnh,nph->tbnp", output, hr)
        h = h @ hr.mT
        if h0 is not None and input.shape[0] == 0:
            h = h0.to(h.dtype)
        elif h0 is not None and lengths is not None:
            h = torch.where((lengths <= 0)[:, None], h0.to(h.dtype), h)
    return Result(output.flatten(2), (h, *others), cells)


def packed(
    call: Call,
    layers: Sequence[Sequence[Weights]],
    cell: str,
    reverse: Sequence[bool],
    dropout: float,
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """A packed batch through all layers without padding it, where dispatch says so; else None."""
    if call.packed is None or not on_torch(call.input, call.state, layers[0], cell, reverse):
        return None
    data, sizes = call.packed.data, call.packed.batch_sizes
    return torch_kernels.packed(data, sizes, call.state, layers, cell, dropout)


def on_torch(
    input: Tensor,
    state: tuple[Tensor, ...] | None,
    weights: Sequence[Weights],
    cell: str,
    reverse: Sequence[bool],
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> bool:
    """Whether torch.nn's own kernel runs this layer, by dispatch's decision."""
    # A trace must hold the operator, which chooses where it runs; symbolic sizes are a trace too.
    if torch.compiler.is_compiling() or type(input.shape[0]) is not int:
        return False
    problem = layer_problem(input, state, weights, cell, reverse, lengths, resets)
    return dispatch.settle(problem) is torch_kernels


def layer_problem(
    input: Tensor,
    state: tuple[Tensor, ...] | None,
    weights: Sequence[Weights],
    cell: str,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    resets: Tensor | None,
) -> dispatch.Problem:
    """The problem that a layer hands to dispatch, with all that torch.nn's kernels lack."""
    asked = {
        "lengths": lengths is not None,
        "resets": resets is not None,
        "torch.func transforms": torch._C._are_functorch_transforms_active(),
        "uniform autocast": dispatch.autocasts(input.device),
        "empty sequences": input.numel() == 0,
        "a lone reversed direction": tuple(reverse) not in ((False,), (False, True)),
    }
    first = weights[0]
    leaves = (input, first.ih, first.hh, *(state or ()))
    T, B, _ = input.shape
    return dispatch.Problem(
        cell,
        T,
        B,
        len(weights),
        first.ih.shape[0] // find(cell).gates,
        input.dtype,
        input.device,
        backward=torch.is_grad_enabled() and any(v.requires_grad for v in leaves),
        runs=len(reverse),
        extras=tuple(name for name, present in asked.items() if present),
    )


def gather(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The directions' tensors one after the other, without a copy where there is one."""
    present = [v for v in tensors if v is not None]
    if not present:
        return None
    return present[0] if len(present) == 1 else torch.cat(present)


def prepare(
    input: Tensor,
    state: tuple[Tensor, ...] | None,
    weights: Sequence[Weights],
    cell: Cell,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    resets: Tensor | None,
) -> tuple[Inputs, Tensor | None]:
    """The arguments of the scan, and the projected h0 if there is one."""
    D, G = len(weights), cell.gates
    b_ih, b_hh = gather([w.b_ih for w in weights]), gather([w.b_hh for w in weights])
    if cell.additive and b_ih is not None and b_hh is not None:
        b_ih, b_hh = b_ih + b_hh, None
    ih: Any = gather([w.ih for w in weights])
    x = torch.nn.functional.linear(input, ih, b_ih).unflatten(-1, (D, G, -1))
    hh = torch.stack([w.hh if w.hr is None else w.hh @ w.hr for w in weights])
    own = [torch.cat(w.own).view(cell.rows, -1) for w in weights if w.own]
    inputs = Inputs(
        x=x,
        # The cast is all of autocast: everything follows the dtype that the projection produced.
        w=hh.to(x.dtype),
        b=None if b_hh is None else b_hh.view(D, -1).to(x.dtype),
        s0=None,
        p=torch.stack(own).to(x.dtype) if own else None,
        m=None,
        d=None,
        lengths=None if lengths is None else lengths[:, None].expand(-1, D),
        resets=None if resets is None else resets[..., None].expand(-1, -1, D),
        cell=cell.name,
        reverse=tuple(reverse),
    )
    if state is None:
        return inputs, None
    h0 = None
    if weights[0].hr is not None:
        h0, state = state[0], (torch.zeros_like(state[1]), *state[1:])
        inputs = inject(inputs, torch.stack([w.hh for w in weights]), h0)
    s0 = torch.stack(state).transpose(1, 2).to(x.dtype)
    return inputs._replace(s0=s0), h0


def inject(inputs: Inputs, hh: Tensor, h0: Tensor) -> Inputs:
    """Adds the initial h's part of the gates to x where each group begins.

    With a projection, h = W_hr m for the unprojected output m, so the scan runs on m with the
    weights W_hh W_hr, and no product is left inside the loop for the projection. But the initial
    h (D, B, P) has no m, so its part enters with the input.
    """
    x = inputs.x
    steps = torch.arange(x.shape[0], device=x.device)[:, None, None]
    backward = backward_groups(inputs)
    first = (steps == torch.where(backward, x.shape[0] - 1, 0)).expand(x.shape[:3])
    if inputs.lengths is not None and any(inputs.reverse):
        first = (first & ~backward) | starts(inputs)
    afresh = fresh(inputs)
    if afresh is not None:
        first = first & ~afresh
    part = torch.einsum("nbp,nrp->bnr", h0.to(x.dtype), hh.to(x.dtype)).unflatten(-1, x.shape[3:])
    return inputs._replace(x=torch.where(first[..., None, None], x + part, x))
