"""A whole layer as one operation: the projection of the input and the scan, forward and backward.

Each operation that autograd records costs the host as much as a short scan takes, and its graph's
nodes run after each other in a thread of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import dispatch
from ..projection import Projection, with_groups
from .check import check
from .gradients import Gradients, every_gradient
from .scan import given, scan
from .sequence import Inputs

COUNT = len(Projection._fields)
Found = tuple[Tensor, Tensor, Tensor]
Maybe = Sequence[Tensor | None]
Arriving = tuple[Tensor | None, Tensor | None, Tensor | None]


class Whole(NamedTuple):
    """How a backend computes a whole layer; x is empty there, and w and b may lack the groups.

    name: of the backend that alone knows what forward kept, None if any does.
    norms: whether it makes an x whose norm has a gain, with its gradient.
    empty(shape, like): that empty x.
    forward(projection, inputs, keep): output, cells and last; the x that backward gets; and what
    else it wants kept.
    backward(projection, inputs, (output, cells), kept, arriving, wanted): the gradients of the
    projection's tensors, and dw, db, ds0 and dp. wanted: whether those of the projection's tensors
    and of the inputs' are; who makes them at no cost may make others, too.
    """

    name: str | None
    norms: bool
    empty: Callable[[tuple[int, ...], Tensor], Tensor]
    forward: Callable[[Projection, Inputs, bool], tuple[Found, Tensor, Maybe]]
    backward: Callable[
        [Projection, Inputs, tuple[Tensor, Tensor], Maybe, Arriving, Sequence[bool]], Maybe
    ]


def layer(whole: Whole, projection: Projection, inputs: Inputs) -> tuple[Tensor, ...]:
    """What `rnnkit::scan` gives, by direction, for an x that is empty: it is computed here.

    w and b may lack the dimension of the groups, too: a view would cost more than the rest of a
    short call. Gradients come in the shapes of the arguments.
    """
    check_layer(projection, inputs)
    if dispatch.recorded(*projection, *inputs[:5]):
        found: tuple[Tensor, ...] = Layer.apply(whole, *projection, *inputs)
        return found
    return results(whole.forward(projection, inputs, False)[0], inputs)


def by_direction(output: Tensor, cells: Tensor, last: Tensor, D: int) -> tuple[Tensor, ...]:
    """output (T, B, D * H) of what a scan gives, its cells, and each of its final states (D, B, H),
    where H is of all heads.
    """
    S, B, N, H = last.shape
    last = last if N == D else last.reshape(S, B, D, N // D * H)
    return output.flatten(2), cells, *last.transpose(1, 2).unbind()


def results(found: Found, inputs: Inputs) -> tuple[Tensor, ...]:
    """The same, each in memory of its own, and no view, which autograd would forbid users to change
    in place. The first state keeps the memory of all.
    """
    output, cells, h, *others = by_direction(*found, len(inputs.reverse))
    return output.data, cells, h.data, *[v.clone() for v in others]


def arriving_by_group(inputs: Inputs, arriving: Sequence[Tensor | None]) -> Arriving:
    """The gradients of what a scan gives, given those of `by_direction`."""
    (doutput, dcells, *dstates), (T, B, N, _, H) = arriving, inputs.x.shape
    doutput = None if doutput is None else doutput.view(T, B, N, H)
    present = [v for v in dstates if v is not None]
    if not present:
        return doutput, dcells, None
    every = [torch.zeros_like(present[0]) if v is None else v for v in dstates]
    return doutput, dcells, torch.stack(every).transpose(1, 2).reshape(-1, B, N, H)


def check_layer(projection: Projection, inputs: Inputs) -> None:
    """Raises unless all arguments fit together: the kernels read what they are told."""
    w, b, x = inputs.w, inputs.b, inputs.x
    _, _, N, G, H = x.shape
    plain = all(v is None for v in inputs[3:9]) and len(inputs.reverse) in (1, N)
    fit = alike(w, x, N * G * H * H) and alike(b, x, N * G * H)
    if not plain or not fit or w.shape[-2:] != (G * H, H):
        check(with_groups(inputs))
    input, ih, b_ih, gain = projection
    if ih.shape[-2:] != (G * H, input.shape[-1]) or not alike(ih, x, ih.numel()):
        shape = (N, G * H, input.shape[-1])
        raise ValueError(
            f"ih: expected (N, G*H, I) = {shape} {x.dtype} on {x.device}, got {described(ih)}"
        )
    for name, v in (("b_ih", b_ih), ("gain of the input's norm", gain)):
        if not alike(v, x, N * G * H):
            assert v is not None
            expected = (N, G * H)
            raise ValueError(f"{name}: expected (N, G*H) = {expected}, got {described(v)}")


def alike(v: Tensor | None, x: Tensor, count: int) -> bool:
    return v is None or (v.numel() == count and v.dtype == x.dtype and v.device == x.device)


def described(v: Tensor) -> str:
    return f"{tuple(v.shape)} {v.dtype} on {v.device}"


class Layer(torch.autograd.Function):
    """The layer with its gradients. Not for torch.func, whose transforms take the operator."""

    @staticmethod
    def forward(ctx: Any, whole: Whole, *values: Any) -> tuple[Tensor, ...]:
        projection, inputs = unpacked(values)
        found, x, kept = whole.forward(projection, inputs, True)
        shown = results(found, inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*shown[:2], *values[:COUNT], x, *values[COUNT + 1 : -2], *kept)
        ctx.whole, ctx.static = whole, values[-2:]
        return shown

    @staticmethod
    def backward(ctx: Any, *arriving: Any) -> tuple[Tensor | None, ...]:
        if all(v is None for v in arriving):
            return (None,) * len(ctx.needs_input_grad)
        (output, cells, *saved), needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        count = len(needed) - len(ctx.static)
        projection, inputs = unpacked((*saved[:count], *ctx.static))
        with dispatch.plain_arithmetic(output.device):
            forced = dispatch.forced() if ctx.whole.name else None
            elsewhere = forced not in (None, ctx.whole.name)
            if torch.is_grad_enabled() or mapped(arriving) or elsewhere:
                return None, *differentiable_gradients(needed, projection, inputs, arriving)
            states = output.view(cells.shape[1:]), cells
            grouped = arriving_by_group(inputs, arriving)
            found = ctx.whole.backward(projection, inputs, states, saved[count:], grouped, needed)
        of_scan = (None, *found[COUNT:])  # nobody wants dx
        none = (None,) * (len(needed) - COUNT - len(of_scan))
        every = (*found[:COUNT], *of_scan, *none)
        return None, *(v if want else None for v, want in zip(every, needed, strict=True))


def unpacked(values: Sequence[Any]) -> tuple[Projection, Inputs]:
    return Projection(*values[:COUNT]), Inputs(*values[COUNT:])


def mapped(arriving: tuple[Tensor | None, ...]) -> bool:
    """Whether a transform maps over this backward, which operators know and kernels do not."""
    legacy = torch._C._functorch.is_legacy_batchedtensor
    every = [v for v in arriving if v is not None]
    return torch._C._are_functorch_transforms_active() or any(map(legacy, every))


def differentiable_gradients(
    needed: tuple[bool, ...],
    projection: Projection,
    inputs: Inputs,
    arriving: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The gradients where they will be differentiated again: by torch's operations and the scan."""
    # Views, so that what reaches one argument through another's own history does not count twice.
    with torch.enable_grad():
        values: Any = [v.view_as(v) if isinstance(v, Tensor) else v for v in (*projection, *inputs)]
    projection, inputs = unpacked(values)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        x = projection.x(inputs.equations, inputs.x.shape)
        found = by_direction(*scan(*with_groups(inputs, x)), len(inputs.reverse))
    pairs = [(v, d) for v, d in zip(found, arriving, strict=True) if d is not None]
    outputs, cotangents = zip(*pairs, strict=True)
    wanted = [k for k, want in enumerate(needed) if want]
    gradients = torch.autograd.grad(
        outputs, [values[k] for k in wanted], cotangents, create_graph=again, allow_unused=True
    )
    by_place = dict(zip(wanted, gradients, strict=True))
    return tuple(by_place.get(k) for k in range(len(values)))


def forward_by_torch(
    projection: Projection, inputs: Inputs, keep: bool
) -> tuple[Found, Tensor, Maybe]:
    """Of backends that have the scan alone: torch's products around it."""
    full = in_full(inputs, projection.x(inputs.equations, inputs.x.shape))
    found: Found = dispatch.choose(full).scan(full)
    return found, full.x, ()


def nothing(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor of such a shape that takes no memory, for what nobody reads."""
    return like.new_empty_strided(shape, (0,) * len(shape))


def in_full(inputs: Inputs, x: Tensor) -> Inputs:
    """The inputs as a backend's scan takes them."""
    full = with_groups(inputs, x)
    return full if full.d is None else given(*full)


def backward_by_torch(
    projection: Projection,
    inputs: Inputs,
    states: tuple[Tensor, Tensor],
    kept: Maybe,
    arriving: Arriving,
    wanted: Sequence[bool],
) -> Maybe:
    full = in_full(inputs, inputs.x)
    backend = dispatch.choose(full, backward=True)
    found = every_gradient(backend, full, states, None, arriving)
    return through_projection(projection, inputs, found, wanted)


def through_projection(
    projection: Projection, inputs: Inputs, found: Gradients, wanted: Sequence[bool]
) -> Maybe:
    """What a whole layer's backward gives, of the gradients of its scan, by torch's operations."""
    dx, dw, db, ds0, dp = found
    input, ih, b_ih, _ = projection
    rows = dx.reshape(-1, ih.numel() // ih.shape[-1])
    dinput = (rows @ ih.flatten(0, -2)).view(input.shape) if wanted[0] else None
    dih = (rows.mT @ input.flatten(0, 1)).view(ih.shape) if wanted[1] else None
    cell, db_ih = inputs.equations, None
    if wanted[2] and b_ih is not None:
        # Where both biases enter a sum, their gradients are equal; two, since autograd may add to
        # each in place.
        equal = cell.additive and cell.norm is None
        db_ih = (rows.sum(0) if db is None or not equal else db.clone()).view(b_ih.shape)
    of_b = None if inputs.b is None or db is None else db.view(inputs.b.shape)
    return dinput, dih, db_ih, None, dw.view(inputs.w.shape), of_b, ds0, dp


BY_TORCH = Whole(None, False, nothing, forward_by_torch, backward_by_torch)
