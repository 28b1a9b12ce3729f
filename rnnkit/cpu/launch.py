"""From a scan's arguments to a call of the native kernels, forward and backward."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.allocate import allocate, allocate_gradients, allocate_products
from ..ops.sequence import Inputs
from .arguments import Arguments, address, bits
from .library import call


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


def of_projection(projection: Projection | None) -> dict[str, int]:
    """The arguments that a projection adds; x is written then."""
    if projection is None:
        return {}
    input, ih, b_ih = projection
    addresses = {"input": input.data_ptr(), "w_ih": ih.data_ptr(), "b_ih": address(b_ih)}
    return addresses | {"I": input.shape[-1]}


def forward(
    inputs: Inputs, keep: bool, projection: Projection | None = None
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """output, cells and last; and if `keep`, products and scales, as of `allocate_products`."""
    output, cells, last = allocate(inputs.x, inputs.cell)
    kept = allocate_products(inputs.x, inputs.cell, True) if keep else None
    products, scales = kept or (None, None)
    arguments = described(inputs)._replace(
        output=output.data_ptr(),
        cells=cells.data_ptr(),
        last=last.data_ptr(),
        products=address(products),
        scales=address(scales),
        **of_projection(projection),
    )
    call("rnnkit_scan", inputs.cell, inputs.x.dtype, arguments)
    return (output, cells, last), kept


def backward(
    inputs: Inputs,
    states: tuple[Tensor, ...],
    kept: tuple[Tensor, Tensor] | None,
    arriving: tuple[Tensor | None, ...],
    projection: Projection | None = None,
    wanted: tuple[bool, bool] = (False, False),
) -> tuple[Tensor | None, ...]:
    """dx, dw, db, ds0 and dp; and as `wanted`, dinput, and dih and db_ih."""
    output, cells = (v.contiguous() for v in states)
    products, scales = map(dense, kept or (None, None))
    doutput, dcells, dlast = map(dense, arriving)
    dx, dw, db, ds0, dp = allocate_gradients(inputs.x, inputs.w, inputs.cell)
    dinput = dih = db_ih = None
    if projection is not None:
        dinput = torch.empty_like(projection.input) if wanted[0] else None
        dih = torch.empty_like(projection.ih) if wanted[1] else None
        db_ih = None if projection.b_ih is None or dih is None else db.new_empty(db.shape)
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
        dinput=address(dinput),
        dw_ih=address(dih),
        db_ih=address(db_ih),
        **of_projection(projection),
    )
    call("rnnkit_scan_backward", inputs.cell, inputs.x.dtype, arguments)
    return dx, dw, db, ds0, dp, dinput, dih, db_ih
