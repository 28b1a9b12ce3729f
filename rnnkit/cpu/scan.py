"""The recurrent kernels on a CPU: one parallel region for a whole sequence, in each direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops.allocate import allocate, allocate_gradients, allocate_products
from ..ops.sequence import Inputs
from .arguments import Arguments, address, bits
from .library import call, instruction_set, instruction_sets, why_no_kernels

if TYPE_CHECKING:
    from ..dispatch import Problem

# Backward is faster where forward has kept what its products gave.
KEEPS = True
# The directions of the runs of groups are bits of one number.
MOST_RUNS = 63


def why_not(problem: Problem) -> str | None:
    """Why the kernels cannot run this problem; None if they can."""
    if problem.device.type != "cpu":
        return f"its kernels run on a CPU, not on {problem.device.type!r}"
    if problem.forward_mode:
        return "its kernels have no forward-mode derivatives"
    if problem.runs > MOST_RUNS:
        return f"reverse has {problem.runs} runs, and its kernels take at most {MOST_RUNS}"
    return why_no_kernels(problem.cell, problem.dtype)


def note(problem: Problem) -> str:
    """The instruction set in use."""
    names = instruction_sets()
    return f"compiled for {names[instruction_set]}" if names else "not compiled"


def dense(v: Tensor | None) -> Tensor | None:
    return None if v is None else v.contiguous()


def unit_stride(v: Tensor) -> Tensor:
    return v if v.stride(-1) == 1 or v.shape[-1] == 1 else v.contiguous()


def ready(inputs: Inputs) -> Inputs:
    """The inputs with the layouts and dtypes that the kernels take."""
    m, lengths = inputs.m, inputs.lengths
    if m is not None:
        m = unit_stride(m if m.dtype == torch.bool else m.to(inputs.x.dtype))
    return inputs._replace(
        x=unit_stride(inputs.x),
        w=inputs.w.contiguous(),
        b=dense(inputs.b),
        s0=dense(inputs.s0),
        p=dense(inputs.p),
        m=m,
        d=dense(inputs.d),
        lengths=None if lengths is None else lengths.long(),
    )


def described(inputs: Inputs) -> Arguments:
    """The arguments that forward and backward share; `inputs` are ready and must outlive them."""
    x, m, norm = inputs.x, inputs.m, inputs.equations.norm
    lengths, resets = inputs.lengths, inputs.resets
    T, B, N, _, H = x.shape
    return Arguments(
        T, B, N, H,
        0 if m is None else m.shape[3],
        len(inputs.reverse),
        sum(back << k for k, back in enumerate(inputs.reverse)),
        0 if norm is None else 1 if norm.per_gate else 2,
        norm is not None and norm.of_sum,
        bits(inputs.equations.eps),
        x.data_ptr(), *x.stride()[:4],
        inputs.w.data_ptr(), address(inputs.b), address(inputs.s0), address(inputs.p),
        address(m), m is not None and m.dtype == torch.bool,
        *((0,) * 4 if m is None else m.stride()[:4]),
        address(inputs.d),
        address(lengths), *((0, 0) if lengths is None else lengths.stride()),
        address(resets), *((0, 0, 0) if resets is None else resets.stride()),
    )  # fmt: skip


def scan(inputs: Inputs, keep: bool = False) -> tuple[Tensor, ...]:
    """output, cells and last; if `keep`, products and scales besides, as of `allocate_products`."""
    inputs = ready(inputs)
    output, cells, last = found = allocate(inputs.x, inputs.cell)
    kept = allocate_products(inputs.x, inputs.cell, True) if keep else ()
    products, scales = kept or (None, None)
    arguments = described(inputs)._replace(
        output=output.data_ptr(),
        cells=cells.data_ptr(),
        last=last.data_ptr(),
        products=address(products),
        scales=address(scales),
    )
    call("rnnkit_scan", inputs.cell, inputs.x.dtype, arguments)
    return (*found, *kept)


def gradients(
    inputs: Inputs,
    states: tuple[Tensor, ...],
    kept: tuple[Tensor, Tensor] | None,
    arriving: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dw, db, ds0 and dp; `states` are output and cells, `kept` products and scales."""
    inputs = ready(inputs)
    output, cells = (v.contiguous() for v in states)
    products, scales = map(dense, kept or (None, None))
    doutput, dcells, dlast = map(dense, arriving)
    dx, dw, db, ds0, dp = allocate_gradients(inputs.x, inputs.w, inputs.cell)
    arguments = described(inputs)._replace(
        output=output.data_ptr(),
        cells=cells.data_ptr(),
        products=address(products),
        scales=address(scales),
        doutput=address(doutput),
        dcells=address(dcells),
        dlast=address(dlast),
        dx=dx.data_ptr(),
        dw=dw.data_ptr(),
        db=db.data_ptr(),
        ds0=ds0.data_ptr(),
        dp=dp.data_ptr(),
    )
    call("rnnkit_scan_backward", inputs.cell, inputs.x.dtype, arguments)
    return dx, dw, db, ds0, dp
