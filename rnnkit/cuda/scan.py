"""The recurrent kernels in CUDA C++: persistent, one launch for a whole sequence, or stepwise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import dispatch
from ..cells import find
from ..native import arguments as native
from ..ops.allocate import allocate
from ..ops.gradients import Gradients, contract_states, of_bias
from ..ops.gradients import gradients as gradients_around
from ..ops.layer import (
    Arriving,
    Found,
    Maybe,
    Whole,
    backward_by_torch,
    in_full,
    nothing,
    through_projection,
)
from ..ops.sequence import Inputs
from ..precision import precision_of
from ..projection import Projection
from . import library, stepwise
from .arguments import Block, Form
from .library import name_of
from .plan import FLAG_BYTES, Gpu, Plan, clusters, kind_of, plan, stepwise_cycles

if TYPE_CHECKING:
    from ..dispatch import Problem

States = tuple[Tensor, Tensor]
# The directions of the runs of groups are bits of one number.
MOST_RUNS = 63


def why_not(problem: Problem) -> str | None:
    """Why the kernels cannot run this problem; None if they can."""
    if problem.forward_mode:
        return "its kernels have no forward-mode derivatives"
    kind = kind_of(problem.dtype, precision_of(problem.dtype))
    if kind is None:
        return f"it has no kernels for dtype {problem.dtype}"
    if problem.runs > MOST_RUNS:
        return f"reverse has {problem.runs} runs, and its kernels take at most {MOST_RUNS}"
    size = problem.B * problem.N * find(problem.cell).gates * problem.H
    if size > stepwise.MOST:
        most = stepwise.MOST
        return f"a step has B * N * G * H = {size} gates, and its kernels number up to {most}"
    # Last, since it may compile them.
    found, reason = library.find(problem.device)
    if found is None:
        return reason
    if problem.device.type != found.device:
        return f"its kernels run on {found.device!r}, not on {problem.device.type!r}"
    if stepwise.find(found.functions, problem.cell, kind) is None:
        return f"cell {problem.cell!r} has no C++ equations"
    plan_found = plan_of(problem, kind)
    if isinstance(plan_found, Plan):
        return None
    reason = stepwise.why_not(problem.cell, problem.H, problem.B, problem.N)
    return reason and f"{plan_found}; and step by step: {reason}"


def plan_of(problem: Problem, kind: str) -> Plan | str:
    sizes = (problem.H, problem.B, problem.N)
    return planned(problem.cell, kind, problem.backward, *sizes, problem.device)


def planned(
    cell: str, kind: str, backward: bool, H: int, B: int, N: int, device: torch.device
) -> Plan | str:
    """How one launch is shared out; or why all steps are launched one by one."""
    gpu, equations = gpu_of(device), find(cell)
    found = plan(cell, kind, backward, H, B, N, gpu)
    # A norm's rows have one block each there, which small batches do not fill a GPU with.
    plain = equations.norm is None and not equations.normalises
    if isinstance(found, str) or not plain or stepwise.why_not(cell, H, B, N):
        return found
    if found.cycles <= stepwise_cycles(cell, kind, H, B, N, gpu):
        return found
    return f"B = {B} rows take less time so, by the planner's model"


def note(problem: Problem) -> str | None:
    """How the problem would be shared out."""
    if why_not(problem) is not None:
        return None
    kind = kind_of(problem.dtype, precision_of(problem.dtype))
    assert kind is not None
    p = plan_of(problem, kind)
    if isinstance(p, str):
        return f"products by cuBLAS, and kernels for the rest, of each step: {p}"
    if p.via == "block":
        return "a block has all units of a group, for one row"
    blocks = f"a cluster of {p.blocks}" if p.via == "cluster" else str(p.blocks)
    return (
        f"{blocks} blocks share a group's units, {p.slices} such groups of blocks the batch, in "
        f"{p.chunks} chunks of {p.columns} rows"
    )


@lru_cache
def gpu_of(device: torch.device) -> Gpu:
    if device.type != "cuda":
        return EMULATED
    found: Any = torch.cuda.get_device_properties(device)
    kernels, shared_bytes = library.find(device)[0], found.shared_memory_per_block_optin
    with torch.cuda.device(device):
        several = kernels.clusters(shared_bytes) if kernels else ()
    processors = found.multi_processor_count
    return Gpu(processors, shared_bytes, several and (processors, *several))


# Where the kernels are emulated: small, so that little suffices to fill it.
EMULATED = Gpu(12, 227 * 1024, clusters(12, 4))


def scan(inputs: Inputs) -> Found:
    """output (T, B, N, H), cells (S - 1, T, B, N, H) and last (S, B, N, H)."""
    return forward(ready(inputs), {})


def ready(inputs: Inputs) -> Inputs:
    """The inputs as the kernels take them: x dense, and all strides of 32 bits."""
    inputs = native.ready(inputs)
    x, m, lengths, resets = inputs.x, inputs.m, inputs.lengths, inputs.resets
    return inputs._replace(
        x=x.contiguous(), m=within(m), lengths=within(lengths), resets=within(resets)
    )


def within(v: Tensor | None) -> Tensor | None:
    return v if v is None or max(v.stride()) <= stepwise.MOST else v.contiguous()


def keeps(inputs: Inputs) -> bool:
    """Whether `scan_and_keep` knows the cell. Backward needs the product of an inner step without
    x, to compute it again.
    """
    return inputs.equations.norm is None and inputs.equations.inner is None


def scan_and_keep(inputs: Inputs) -> tuple[Found, Tensor]:
    """`scan`, which leaves in x, which must be dense, the sums of x and products of some gates, or
    their activations; and the products of the others: what `backward` takes, if told so.
    """
    count = summed_gates(inputs)
    T, B, N, G, H = inputs.x.shape
    products = inputs.x.new_empty(T, B, N, G - count, H)
    kept = {"summed": count, "products": native.address(products), "activated": 1}
    return forward(ready(inputs), kept), products


def forward(inputs: Inputs, more: dict[str, int]) -> Found:
    """Of inputs that are ready."""
    output, cells, last = allocate(inputs.x, inputs.cell)
    results = {"output": output, "cells": cells, "last": last}
    launch(inputs, False, more | {name: native.address(v) for name, v in results.items()})
    return output, cells, last


def gradients(inputs: Inputs, states: States, kept: None, arriving: Arriving) -> Gradients:
    """dx, dw, db, ds0 and dp; states: output and cells."""

    def scan_backward(inputs: Inputs, prev: Tensor, n: Tensor, scale: Any, *arriving: Any) -> Any:
        return backward(*summed_up(inputs, n), scale, states, arriving, False)

    every = states[0], *states[1].unbind()
    return gradients_around(scan_backward, inputs, every, arriving)


def summed_up(inputs: Inputs, n: Tensor) -> tuple[Inputs, Tensor]:
    """x and products as `scan_and_keep` leaves them, of all products, whose memory they take."""
    inputs, count = ready(inputs), summed_gates(inputs)
    if count == 0:
        return inputs, n
    x, n = inputs.x, n.contiguous()
    products = n[:, :, :, count:].clone(memory_format=torch.contiguous_format)
    n[:, :, :, :count] += x[:, :, :, :count]
    n[:, :, :, count:] = x[:, :, :, count:]
    return inputs._replace(x=n), products


def backward(
    inputs: Inputs,
    products: Tensor,
    scale: Tensor | None,
    states: States,
    arriving: Arriving,
    activated: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dr, ds0 and dp, of inputs that are ready; activated: whether `scan_and_keep` left x."""
    x, cell, (_, B, N, _, H) = inputs.x, inputs.equations, inputs.x.shape
    dx = x.new_empty(x.shape)
    dr = dx if cell.additive else x.new_empty(x.shape)
    ds0 = x.new_empty(cell.states, B, N, H)
    wide, rows = torch.promote_types(x.dtype, torch.float32), cell.rows - cell.gains
    dp = x.new_empty(B, N, rows, H, dtype=wide)
    given = {"products": products, "scales": None if scale is None else scale[..., 0]}
    given |= dict(zip(("output", "cells"), states, strict=True))
    given |= dict(zip(("doutput", "dcells", "dlast"), arriving, strict=True))
    dense = {name: native.dense(v) for name, v in given.items()} | {"dx": dx, "ds0": ds0, "dp": dp}
    more = {name: native.address(v) for name, v in dense.items()}
    launch(inputs, True, more | {"activated": activated}, dr)
    return dx, dr, ds0, dp.sum(0).to(x.dtype) if rows else x.new_empty(N, 0, H)


def summed_gates(inputs: Inputs) -> int:
    """The first gates whose sums of x and products backward finds in x, not among the products."""
    found, kind = library_for(inputs.x)
    return stepwise.summed(found.functions, inputs.cell, kind)


def library_for(x: Tensor) -> tuple[library.Library, str]:
    """The library, and the kind of product, for scans of x."""
    found, reason = library.find(x.device)
    kind = kind_of(x.dtype, precision_of(x.dtype))
    assert found is not None and kind is not None, reason
    return found, kind


def layer(projection: Projection, inputs: Inputs, keep: bool) -> tuple[Found, Tensor, Maybe]:
    """A whole layer, as `rnnkit.ops.layer.Whole` has it. What backward needs of the products is not
    computed again where x has room for it.
    """
    full = in_full(inputs, projection.x(inputs.equations, inputs.x.shape).contiguous())
    backend = dispatch.choose(full)
    if not keep or backend.scan is not scan or not keeps(full):
        return backend.scan(full), full.x, ()
    found, products = scan_and_keep(full)
    return found, full.x, (products,)


def layer_backward(
    projection: Projection,
    inputs: Inputs,
    states: States,
    kept: Maybe,
    arriving: Arriving,
    wanted: Sequence[bool],
) -> Maybe:
    if not kept:
        return backward_by_torch(projection, inputs, states, kept, arriving, wanted)
    full, (products,) = in_full(inputs, inputs.x), kept
    assert products is not None
    dx, dr, ds0, dp = backward(ready(full), products, None, states, arriving, True)
    dw, db = contract_states(full, dr, states[0]), of_bias(full, dr)
    return through_projection(projection, inputs, (dx, dw, db, ds0, dp), wanted)


WHOLE = Whole("cuda", False, nothing, layer, layer_backward)


def launch(inputs: Inputs, backward: bool, more: dict[str, int], dr: Tensor | None = None) -> None:
    """Plans and launches; `more`: arguments of the scan, dr: of the form."""
    x, (_, B, N, _, H) = inputs.x, inputs.x.shape
    found, kind = library_for(x)
    chosen = planned(inputs.cell, kind, backward, H, B, N, x.device)
    if isinstance(chosen, Plan):
        run(found, chosen, kind, inputs, backward, more, dr)
    else:
        stepwise.run(found, kind, inputs, backward, more, dr)


def run(
    found: library.Library,
    chosen: Plan,
    kind: str,
    inputs: Inputs,
    backward: bool,
    more: dict[str, int],
    dr: Tensor | None,
) -> None:
    """Launches by a plan."""
    x = inputs.x
    (_, B, N, _, H), name = x.shape, name_of(inputs.cell)
    kernel = found.persistent(name, kind, chosen.unit_tiles, backward, chosen.via)
    # The others need neither: their blocks have buffers and barriers in shared memory.
    every = N * chosen.slices * chosen.chunks if chosen.via == "L2" else 0
    size = 2 * every * chosen.columns * chosen.pitch
    exchange = x.new_zeros(size + FLAG_BYTES * every, dtype=torch.uint8) if every else None
    place = native.address(exchange)
    with torch.cuda.device_of(x):
        form = Form(
            chosen.blocks,
            chosen.slices,
            chosen.chunks,
            B * N * H,
            native.address(dr),
            place,
            place + size,
            chosen.pitch,
            torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0,
        )
        found.launch(kernel, native.described(inputs, more), Block(*form))
