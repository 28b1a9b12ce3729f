"""From a scan's arguments to a call of the native kernels, forward and backward."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.allocate import (
    allocate,
    allocate_gradients,
    allocate_products,
)
from ..ops.sequence import Inputs
from .arguments import Arguments, Block, address, bits
from .library import call, shared


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


class Projection(NamedTuple):
    """What x is computed of: input (T, B, I), ih (N, G * H, I) and b_ih (N, G * H); all dense."""

    input: Tensor
    ih: Tensor
    b_ih: Tensor | None


def of_projection(inputs: Inputs, projection: Projection | None) -> dict[str, int]:
    """The arguments that a projection adds; x is written then."""
    if projection is None:
        return {}
    input, ih, b_ih = projection
    addresses = {"input": input.data_ptr(), "w_ih": ih.data_ptr(), "b_ih": address(b_ih)}
    return addresses | {"I": input.shape[-1], "summed": summed(inputs)}


def summed(inputs: Inputs) -> int:
    """The first gates whose products are added to an x that is computed here."""
    if inputs.equations.norm is not None or inputs.x.dtype == torch.bfloat16:
        return 0
    return shared(inputs.cell, inputs.x.dtype)


def kept_by(inputs: Inputs, projection: Projection | None) -> tuple[Tensor, Tensor]:
    """Room for the products and scales that forward keeps."""
    if projection is None or summed(inputs) == 0:
        return allocate_products(inputs.x, inputs.cell, True)
    T, B, N, G, H = inputs.x.shape
    return inputs.x.new_empty(T, B, N, G - summed(inputs), H), inputs.x.new_empty(0)


def forward(
    inputs: Inputs, keep: bool, projection: Projection | None = None
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """output, cells and last; and if `keep`, products and scales for `backward`."""
    output, cells, last = allocate(inputs.x, inputs.cell)
    kept = kept_by(inputs, projection) if keep else None
    products, scales = kept or (None, None)
    arguments = described(inputs)._replace(
        output=output.data_ptr(),
        cells=cells.data_ptr(),
        last=last.data_ptr(),
        products=address(products),
        scales=address(scales),
        **of_projection(inputs, projection),
    )
    call("rnnkit_scan", inputs.cell, inputs.x.dtype, Block(*arguments))
    return (output, cells, last), kept


def backward(
    inputs: Inputs,
    states: tuple[Tensor, ...],
    kept: tuple[Tensor, Tensor] | None,
    arriving: tuple[Tensor | None, ...],
) -> tuple[Tensor, ...]:
    """dx, dw, db, ds0 and dp."""
    found = allocate_gradients(inputs.x, inputs.w, inputs.cell)
    launch_backward(inputs, states, kept, arriving, (found[0].data_ptr(), *found[1:]), {})
    return found


def backward_through(
    projection: Projection,
    wanted: tuple[bool, bool],
    inputs: Inputs,
    states: tuple[Tensor, ...],
    kept: tuple[Tensor, Tensor] | None,
    arriving: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """dinput, dih, db_ih, dw, db, ds0 and dp; dinput, and dih and db_ih only if wanted."""
    input, ih, b_ih = projection
    dw, b, s0, p = torch.empty_like(inputs.w), inputs.b, inputs.s0, inputs.p
    db, ds0, dp = (None if v is None else torch.empty_like(v) for v in (b, s0, p))
    dinput = torch.empty_like(input) if wanted[0] else None
    dih = torch.empty_like(ih) if wanted[1] else None
    db_ih = torch.empty_like(b_ih) if wanted[1] and b_ih is not None else None
    more = {"dinput": address(dinput), "dw_ih": address(dih), "db_ih": address(db_ih)}
    more |= of_projection(inputs, projection)
    launch_backward(inputs, states, kept, arriving, (0, dw, db, ds0, dp), more)
    return dinput, dih, db_ih, dw, db, ds0, dp


def launch_backward(
    inputs: Inputs,
    states: tuple[Tensor, ...],
    kept: tuple[Tensor, Tensor] | None,
    arriving: tuple[Tensor | None, ...],
    results: tuple[int, Tensor, Tensor | None, Tensor | None, Tensor | None],
    more: dict[str, int],
) -> None:
    output, cells = (v.contiguous() for v in states)
    products, scales = map(dense, kept or (None, None))
    doutput, dcells, dlast = map(dense, arriving)
    dx, dw, db, ds0, dp = results
    arguments = described(inputs)._replace(
        output=output.data_ptr(),
        cells=cells.data_ptr(),
        products=address(products),
        scales=address(scales),
        doutput=address(doutput),
        dcells=address(dcells),
        dlast=address(dlast),
        dx=dx,
        dw=dw.data_ptr(),
        db=address(db),
        ds0=address(ds0),
        dp=address(dp),
        **more,
    )
    call("rnnkit_scan_backward", inputs.cell, inputs.x.dtype, Block(*arguments))
