"""What stands around a cell's step: the recurrent products, their norm, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..cells.norm import normalise, normalise_vjp
from ..ops.sequence import Inputs, products, valid

Tensors = tuple[Tensor, ...]
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def product(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """h @ w.T + b in each group: (..., N, H), (N, R, H) and (N, R) to (..., N, R)."""
    if w.shape[0] == 1:
        return torch.nn.functional.linear(h, w[0], None if b is None else b[0])
    rows = h.flatten(0, -3).transpose(0, 1)
    out = rows @ w.mT if b is None else torch.baddbmm(b[:, None], rows, w.mT)
    return out.transpose(0, 1).unflatten(0, h.shape[:-2])


def part(v: Tensor, gates: slice) -> Tensor:
    """Some gates of (..., N, G, H) or (..., N, G, 1)."""
    return v[..., gates, :]


def rows(v: Tensor, gates: slice, G: int) -> Tensor:
    """The rows of w or b (N, G * H, ...) that serve some of G gates."""
    if gates == slice(0, G):
        return v
    H = v.shape[1] // G
    return v[:, gates.start * H : gates.stop * H]


def recurrent_gates(
    inputs: Inputs, x: Tensors, s: Tensors, product: Product = product
) -> tuple[Tensor, Tensor | None]:
    """What every gate's product gives, for one step or all: only the states must be known.

    Returns (..., N, G, H): r; or with a norm what `normalise` gives, its gain and bias to come, and
    the scale (..., N, G, 1), by which it was multiplied.
    """
    cell, late, G = inputs.equations, inputs.late, inputs.x.shape[3]
    if cell.inner is None:
        return of_product(inputs, s[0], x, slice(0, G), product)
    early, scale = of_product(inputs, s[0], x, slice(0, late), product)
    q = cell.inner.step(*seen(inputs, x, early, slice(0, late)), s, inputs.parameters)
    n, scale_late = of_product(inputs, q, x, slice(late, G), product)
    both = None if scale is None or scale_late is None else torch.cat([scale, scale_late], -2)
    return torch.cat([early, n], -2), both


def of_product(
    inputs: Inputs, q: Tensor, x: Tensors, gates: slice, product: Product
) -> tuple[Tensor, Tensor | None]:
    """`recurrent_gates` of the gates that one product with q serves."""
    cell, b, G = inputs.equations, inputs.b, inputs.x.shape[3]
    q = q if inputs.d is None else q * inputs.d
    bias = None if b is None or cell.norm else rows(b, gates, G)
    v = product(q, rows(inputs.w, gates, G), bias)
    v = v.view(*v.shape[:-1], gates.stop - gates.start, inputs.x.shape[4])
    if cell.norm is None:
        return v, None
    if cell.norm.of_sum:
        v = v + torch.stack(x[gates], -2)
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    n, scale = normalise(wide, cell.eps, 1 if cell.norm.per_gate else 2)
    return n.to(v.dtype), scale.expand(*v.shape[:-1], 1)


def seen(inputs: Inputs, x: Tensors, n: Tensor, gates: slice) -> tuple[Tensors, Tensors]:
    """The x and r that the step sees, of some gates, from those gates of `recurrent_gates`."""
    x, norm = x[gates], inputs.equations.norm
    if norm is not None and inputs.gain is not None:
        n = n * part(inputs.gain, gates)
        n = n if inputs.b is None else n + part(inputs.b.unflatten(-1, inputs.x.shape[3:]), gates)
        x = tuple(map(torch.zeros_like, x)) if norm.of_sum else x
    return x, n.unbind(-2)


def before_norm(
    inputs: Inputs, dr: Tensor, n: Tensor, scale: Tensor | None, gates: slice
) -> Tensor:
    """The gradient (..., N, G, H) of the products, given that of r, of some gates."""
    norm, gain = inputs.equations.norm, inputs.gain
    if norm is None or gain is None or scale is None:
        return dr
    dn, dims = dr * part(gain, gates), 1 if norm.per_gate else 2
    return normalise_vjp(part(n, gates), part(scale, gates), dn, dims).to(dr.dtype)


def fed(inputs: Inputs, x: Tensors, s: Tensors, n: Tensor) -> list[Tensor]:
    """What each recurrent product was fed over the whole sequence."""
    cell, early = inputs.equations, slice(0, inputs.late)
    q = [s[0]]
    if cell.inner is not None:
        inner = cell.inner.step(*seen(inputs, x, part(n, early), early), s, inputs.parameters)
        live = valid(inputs)
        # Padding may hold NaN, which a zero gradient would not silence in a product.
        q.append(inner if live is None else inner.masked_fill(~live[..., None], 0))
    return q if inputs.d is None else [v * inputs.d for v in q]


def through_products(
    inputs: Inputs,
    x: Tensors,
    n: Tensor,
    scale: Tensor | None,
    s: Tensors,
    dx: Tensors,
    dr: Tensors,
    ds: Tensors,
) -> tuple[Tensors, Tensors, Tensors]:
    """dx, dr and ds of one step, given what they get from the cell alone."""
    inner, late = inputs.equations.inner, inputs.late

    def through(dr: Tensors, gates: slice) -> Tensor:
        dv = before_norm(inputs, torch.stack(dr, -2), n, scale, gates).flatten(-2)
        dq = product(dv, rows(inputs.w, gates, inputs.equations.gates).mT, None)
        return dq if inputs.d is None else dq * inputs.d

    early = products(inputs)[0]
    if inner is not None:
        dq = through(dr[late:], products(inputs)[1])
        of_early = seen(inputs, x, part(n, early), early)
        dx_in, dr_in, ds_in = inner.vjp(*of_early, s, inputs.parameters, dq)
        dx = tuple(a + b for a, b in zip(dx[:late], dx_in, strict=True)) + dx[late:]
        dr = tuple(a + b for a, b in zip(dr[:late], dr_in, strict=True)) + dr[late:]
        ds = tuple(a + b for a, b in zip(ds, ds_in, strict=False)) + ds[len(ds_in) :]
    return dx, dr, (ds[0] + through(dr[:late], early), *ds[1:])
