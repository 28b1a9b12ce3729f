"""The ways into a recurrent layer and out of it: batched or not, batch first, packed.

Inside, a sequence is always (T, B, features), with each state (layers * directions, B, size).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import _VF, Tensor
from torch.nn.utils.rnn import PackedSequence

from ..dispatch import autocasts

if TYPE_CHECKING:
    from .base import Gated
    from .rnn import Recurrent


class Call(NamedTuple):
    """One call of a layer, in the inner form, and what is needed to undo it."""

    input: Tensor
    state: tuple[Tensor, ...] | None
    lengths: Tensor | None
    resets: Tensor | None
    batched: bool = True
    packed: PackedSequence | None = None
    packed_lengths: Tensor | None = None


def enter(layer: Recurrent, weight: Tensor, input: Any, hx: Any, lengths: Any, resets: Any) -> Call:
    """Checks the arguments of a layer's call and brings them into the inner form."""
    state = unpack_state(layer, hx)
    if isinstance(input, PackedSequence):
        for name, value in (("lengths", lengths), ("resets", resets)):
            if value is not None:
                raise ValueError(
                    f"{name}: expected None with a PackedSequence, which has its own lengths; "
                    "give a padded input instead"
                )
        return enter_packed(layer, weight, input, state)
    name = type(layer).__name__
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input should be a Tensor or PackedSequence, got {type(input)}")
    if input.dim() not in (2, 3):
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D instead")
    batched = input.dim() == 3
    if state is not None and any(v.dim() != input.dim() for v in state):
        kind, dims = ("batched 3-D", 3) if batched else ("unbatched 2-D", 2)
        names, got = ("hx and cx", "tensors") if len(state) > 1 else ("hx", "tensor")
        found = ", ".join(f"{v.dim()}-D" for v in state)
        found = f"({found})" if len(state) > 1 else found
        raise RuntimeError(
            f"For {kind} input, {names} should also be {dims}-D but got {found} {got}"
        )
    if not batched:
        input = input.unsqueeze(1)
        state = state and tuple(v.unsqueeze(1) for v in state)
    elif layer.batch_first:
        input = input.transpose(0, 1)
    check(layer, weight, input, state)
    if resets is not None:
        resets = enter_resets(resets, input, batched, layer.batch_first)
    if lengths is not None:
        lengths = enter_lengths(lengths, input, batched)
        # Padding may hold NaN, which a zero gradient would not silence in a product: weight_ih's.
        steps = torch.arange(input.shape[0], device=input.device)[:, None]
        input = input.masked_fill((steps >= lengths)[..., None], 0)
    return Call(input, state, lengths, resets, batched)


def leave(
    layer: Recurrent,
    call: Call,
    output: Tensor,
    state: tuple[Tensor, ...],
    cells: Tensor | None = None,
) -> Any:
    """The inner results in the form in which the call came: output, state, and cells if given."""
    every = [output] if cells is None else [output, cells]
    if call.packed is not None and call.packed_lengths is not None:
        _, sizes, order, back = call.packed
        # From a backend that takes packed batches the output comes as packed data.
        data = [
            _VF._pack_padded_sequence(v, call.packed_lengths, False)[0] if v.dim() == 3 else v
            for v in every
        ]
        shown: list[Any] = [PackedSequence(v, sizes, order, back) for v in data]
        if back is not None:
            state = tuple(v.index_select(1, back) for v in state)
    elif not call.batched:
        shown, state = [v.squeeze(1) for v in every], tuple(v.squeeze(1) for v in state)
    else:
        shown = [v.transpose(0, 1) for v in every] if layer.batch_first else every
    return (shown[0], pack_state(state), *shown[1:])


def unpack_state(layer: Gated, hx: Any) -> tuple[Tensor, ...] | None:
    """hx as a tuple of states: torch.nn gives one state bare."""
    states = layer.equations.states
    state = (hx,) if states == 1 and isinstance(hx, Tensor) else hx
    if hx is None:
        return None
    fits = isinstance(state, tuple | list) and len(state) == states
    if not fits or not all(isinstance(v, Tensor) for v in state):
        given = type(hx).__name__
        if isinstance(hx, tuple | list):
            given += f" of ({', '.join(type(v).__name__ for v in hx)})"
        raise RuntimeError(
            f"hx: {type(layer).__name__} expects "
            f"{'a Tensor' if states == 1 else f'a tuple of {states} Tensors'}, got {given}"
        )
    return tuple(state)


def pack_state(state: tuple[Tensor, ...]) -> Any:
    return state if len(state) > 1 else state[0]


def enter_packed(
    layer: Recurrent, weight: Tensor, packed: PackedSequence, state: tuple[Tensor, ...] | None
) -> Call:
    """Pads a packed batch, which lists its rows by falling length."""
    data, sizes, order, _ = packed
    if data.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
    padded, lengths = _VF._pad_packed_sequence(data, sizes, False, 0.0, len(sizes))
    if state is not None and order is not None:
        state = tuple(v.index_select(1, order) for v in state)
    check(layer, weight, padded, state)
    # All rows full: nothing to mask. The sizes lie on the host, so looking costs no wait.
    full = bool(sizes[-1] == sizes[0])
    on_device = None if full else lengths.to(data.device, non_blocking=True)
    return Call(padded, state, on_device, None, packed=packed, packed_lengths=lengths)


def check(
    layer: Recurrent, weight: Tensor, input: Tensor, state: tuple[Tensor, ...] | None
) -> None:
    """Raises unless input (T, B, I) and states fit the layer and its weights."""
    if input.size(-1) != layer.input_size:
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {layer.input_size}, got {input.size(-1)}"
        )
    match(weight, input)
    rows = layer.num_layers * len(layer.reverse)
    for k, value in enumerate(state or ()):
        size = layer.proj_size or layer.hidden_size if k == 0 else layer.hidden_size
        expected = (rows, input.size(1), size)
        if tuple(value.shape) != expected:
            which = f"hidden[{k}] size" if layer.equations.states > 1 else "hidden size"
            raise RuntimeError(f"Expected {which} {expected}, got {list(value.size())}")
        match(input, value, "hx", "input")


def match(weight: Tensor, value: Tensor, name: str = "input", other: str = "weight") -> None:
    """Raises unless two tensors share their device and, outside autocast, their dtype."""
    if value.device != weight.device:
        raise ValueError(
            f"RNN {name} device ({value.device}) does not match {other} device ({weight.device})"
        )
    if value.dtype != weight.dtype and not autocasts(value.device):
        raise ValueError(
            f"RNN {name} dtype ({value.dtype}) does not match {other} dtype ({weight.dtype}). "
            f"Convert {name}: {name}.to({weight.dtype}), or convert model: model.to({value.dtype})"
        )


def enter_lengths(lengths: Any, input: Tensor, batched: bool) -> Tensor:
    """lengths as (B,) on the input's device."""
    T, B, _ = input.shape
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths: expected a Tensor, got {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths: expected an integer dtype, got {lengths.dtype}")
    expected = (B,) if batched else ()
    if tuple(lengths.shape) != expected:
        raise ValueError(f"lengths: expected shape {expected}, got {tuple(lengths.shape)}")
    # On a GPU a look at the values would wait for the device; there they count as clamped.
    readable = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and B and not torch._C._are_functorch_transforms_active():
        low, high = (int(v) for v in lengths.aminmax())
        if low < 0 or high > T:
            raise ValueError(f"lengths: expected values in [0, T = {T}], got {low} to {high}")
    # A small dtype may not hold T.
    return lengths.view(B).long().clamp(0, T).to(input.device, non_blocking=True)


def enter_resets(resets: Any, input: Tensor, batched: bool, batch_first: bool) -> Tensor:
    """resets as (T, B)."""
    T, B, _ = input.shape
    if not isinstance(resets, Tensor) or resets.dtype != torch.bool:
        given = resets.dtype if isinstance(resets, Tensor) else type(resets).__name__
        raise TypeError(f"resets: expected a Tensor of dtype torch.bool, got {given}")
    expected = (T,) if not batched else (B, T) if batch_first else (T, B)
    if tuple(resets.shape) != expected:
        raise ValueError(f"resets: expected shape {expected}, got {tuple(resets.shape)}")
    if resets.device != input.device:
        # A GPU reads pinned memory after the call has returned, when its owner may have changed it.
        resets = resets.clone().to(input.device, non_blocking=True)
    if not batched:
        return resets[:, None]
    return resets.T if batch_first else resets
