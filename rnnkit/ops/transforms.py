"""One way to make an operator differentiable, shared by all of ours.

`torch.library` knows the autograd formula and the vmap rule of an operator, which serves eager
mode, torch.compile and export. But an operator whose formula is registered from Python refuses
`torch.func.grad`, and silently drops forward-mode tangents. So under functorch calls go through an
autograd.Function made of the same formula; and in forward mode through plain torch code where there
is some, or else through that function, which refuses tangents.

Where only autograd looks at the call, it needs no operator either: the same formula then goes
around torch.library, whose layers of Python are a fifth of a short call's time on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..dispatch import plain, plain_arithmetic, recorded

Axes = Sequence[int | None]


def differentiable(
    op: Any,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    vmap: Callable[..., Any],
    forward_mode: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Registers an operator's autograd formula and vmap rule, and returns the function to call."""
    op.register_autograd(backward, setup_context=setup_context)
    op.register_vmap(vmap)

    def run(ctx: Any, *args: Any) -> Any:
        found = op._init_fn(*args)
        setup_context(ctx, args, found)
        return found

    def function(**members: Callable[..., Any]) -> Any:
        made = {name: staticmethod(member) for name, member in members.items()}
        return type(op._qualname.replace("::", "_"), (torch.autograd.Function,), made)

    transformed = function(forward=op, setup_context=setup_context, backward=backward, vmap=vmap)
    # torch looks up the signature of a forward without ctx at every call.
    direct = function(forward=run, backward=backward)

    def call(*args: Any) -> Any:
        tensors = [v for v in args if isinstance(v, Tensor)]
        if plain(*tensors):
            return direct.apply(*args) if recorded(*tensors) else op._init_fn(*args)
        tangents = forward_ad._current_level >= 0
        if tangents and forward_mode is not None:
            return forward_mode(*args)
        if tangents or torch._C._are_functorch_transforms_active():
            return transformed.apply(*args)
        return op(*args)

    return call


def pull_back(
    formula: Callable[..., tuple[Any, ...]],
    saved: Sequence[Tensor | None],
    arriving: Sequence[Tensor | None],
    most: int | None = None,
) -> list[Tensor | None]:
    """The gradients of what a backward operator saved, given those of its results.

    formula takes all that was saved and gives all results, by operations that torch differentiates;
    so derivatives of any order are right. Only the first `most` of saved may have a gradient.
    """
    inner = [i for i, v in enumerate(saved[:most]) if v is not None]
    # What was not wanted is empty, and its gradient says nothing.
    outer = [i for i, v in enumerate(arriving) if v is not None and v.numel()]
    result: list[Tensor | None] = [None] * len(saved)

    def chosen(*values: Tensor) -> tuple[Any, ...]:
        full = list(saved)
        for i, value in zip(inner, values, strict=True):
            full[i] = value
        found = formula(*full)
        return tuple(found[i] for i in outer)

    if outer:
        given = [v for v in saved[:most] if v is not None]
        with plain_arithmetic(given[0].device):
            vjp = torch.func.vjp(chosen, *given)[1]
            found = vjp(tuple(arriving[i] for i in outer))
        for i, value in zip(inner, found, strict=True):
            result[i] = value
    return result


def fold(value: Tensor | None, batched: int | None, size: int, axis: int) -> Tensor | None:
    """Moves the mapped dimension (or repeats the value) into dimension `axis`, innermost."""
    if value is None:
        return None
    if batched is None:
        shape = (*value.shape[: axis + 1], size, *value.shape[axis + 1 :])
        return value.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1)
    return value.movedim(batched, axis + 1).flatten(axis, axis + 1)


def unfold(value: Tensor, size: int, axis: int) -> Tensor:
    """The inverse of `fold`: the mapped dimension stands at axis + 1."""
    return value.unflatten(axis, (-1, size))


def one_by_one(call: Callable[..., Any], info: Any, axes: Sequence[Any], args: Any) -> Any:
    """A vmap rule for what no dimension can take in: each mapped call by itself, stacked."""
    found = []
    for i in range(info.batch_size):
        picked = (
            v.select(axis, i) if isinstance(v, Tensor) and axis is not None else v
            for v, axis in zip(args, axes, strict=True)
        )
        found.append(call(*picked))
    if isinstance(found[0], Tensor):
        return torch.stack(found), 0
    out = tuple(torch.stack(members) for members in zip(*found, strict=True))
    return out, (0,) * len(out)
