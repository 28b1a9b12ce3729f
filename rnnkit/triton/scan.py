"""Launches the recurrent kernels: one launch for a whole sequence where the weights fit on chip,
else one matrix product and one launch a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cells import find
from ..ops.layer import BY_TORCH
from ..ops.sequence import Inputs, flags
from ..precision import precision_of
from . import stepwise
from .arguments import Backward, Forward, Launch, Sizes, Static
from .cells import equations
from .fit import Form, choose_form, largest, sums
from .kernels import PER_GATE, TOGETHER, scan_backward_kernel, scan_kernel
from .usable import why_unusable

if TYPE_CHECKING:
    from ..dispatch import Problem

WHOLE = BY_TORCH
# What the second dimension of a grid takes.
MOST_GROUPS = 65535
# The kernels compute offsets within a tile of at most 128 rows in 32 bits.
LONGEST_STRIDE = 2**31 // 128
# The columns of one program's tiles.
WIDEST = 2048


def why_not(problem: Problem) -> str | None:
    """Why the kernels cannot run this problem; None if they can."""
    if equations(problem.cell) is None:
        return f"cell {problem.cell!r} has no Triton equations"
    unusable = why_unusable(problem)
    if unusable is not None:
        return unusable
    if problem.N > MOST_GROUPS:
        return f"N = {problem.N} groups: a GPU's grid takes at most {MOST_GROUPS}"
    if problem.runs > 31:
        return f"reverse has {problem.runs} runs, and its kernels take at most 31"
    if find(problem.cell).normalises and problem.H > WIDEST:
        return f"H = {problem.H}: the norm in the step of {problem.cell!r} takes at most {WIDEST}"
    return None


def note(problem: Problem) -> str:
    """Up to which size one launch runs a whole sequence of this kind."""
    more = bool(set(problem.extras or ()) & {"lengths", "resets", "zoneout", "recurrent dropout"})
    kind = (problem.cell, problem.dtype, problem.device, more)
    forward, backward = largest(*kind, False), largest(*kind, True)
    return (
        f"one launch a sequence up to H = {forward} forward and {backward} backward (a group's "
        "units, whose weights stay on chip); beyond, a product and a launch a step"
    )


def sizes_of(inputs: Inputs, form: Form, w_strides: tuple[int, ...]) -> Sizes:
    x, m = inputs.x, inputs.m
    T, B, N, _, H = x.shape
    m_strides = (0,) * 4 if m is None else m.stride()[:4]
    return Sizes(T if form.resident else 1, T, B, N, H, x.stride()[:4], m_strides, w_strides)


def static_of(inputs: Inputs, form: Form) -> Static:
    cell, dtype = inputs.equations, inputs.x.dtype
    norm = 0 if cell.norm is None else PER_GATE.value if cell.norm.per_gate else TOGETHER.value
    values = (
        cell.gates,
        cell.states,
        cell.rows - cell.gains,
        0 if inputs.m is None else inputs.m.shape[3],
        inputs.late,
        sums(cell, form.resident),
        norm,
        cell.eps,
        sum(back << k for k, back in enumerate(inputs.reverse)),
        len(inputs.reverse),
        form.resident,
        form.stream,
        form.ahead,
        form.at_once,
        tl.float64 if dtype == torch.float64 else tl.float32,
        precision_of(dtype),
        dtype.itemsize == 2,
        form.rows,
        form.columns,
    )
    return Static(*map(tl.constexpr, values))


def marks(inputs: Inputs) -> Tensor | None:
    found = flags(inputs)
    return None if found is None else found.contiguous()


def grid(inputs: Inputs, form: Form) -> tuple[int, int, int]:
    _, B, N, _, H = inputs.x.shape
    return triton.cdiv(B, form.rows), N, triton.cdiv(H, form.columns)


def ready(inputs: Inputs) -> Inputs:
    """The inputs with the layouts that the kernels take: dense units, and dense small tensors."""
    dense = {name: getattr(inputs, name) for name in ("b", "s0", "p", "d")}
    dense = {name: v.contiguous() for name, v in dense.items() if v is not None}
    wide = {name: getattr(inputs, name) for name in ("x", "w", "m")}
    for name, v in wide.items():
        if v is None:
            continue
        if v.stride(-1) != 1 or max(v.stride(1), v.stride(-2)) > LONGEST_STRIDE:
            dense[name] = v.contiguous()
    return inputs._replace(**dense)


def scan(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """output (T, B, N, H), cells (S - 1, T, B, N, H) and last (S, B, N, H)."""
    inputs = ready(inputs)
    x, S = inputs.x, inputs.equations.states
    T, B, N, _, H = x.shape
    output, cells = x.new_empty(T, B, N, H), x.new_empty(S - 1, T, B, N, H)
    last = x.new_empty(S, B, N, H)
    start = x.new_zeros(S, B, N, H) if inputs.s0 is None else inputs.s0
    form = choose_form(inputs, backward=False)
    launch = forward_launch(inputs, form, start, output, cells, last)
    with torch.cuda.device_of(x):
        if form.resident:
            launch.go()
        else:
            stepwise.forward(inputs, launch)
            last.copy_(launch.tensors.last)
    return output, cells, last


def forward_launch(
    inputs: Inputs, form: Form, start: Tensor, output: Tensor, cells: Tensor, last: Tensor
) -> Launch:
    x, m, w, b, d = (getattr(inputs, name) for name in ("x", "m", "w", "b", "d"))
    r, cell = None, equations(inputs.cell)
    assert cell is not None
    if not form.resident:
        # The state between the steps, in the precision in which the kernel computes.
        start = last = start.to(torch.promote_types(start.dtype, torch.float32), copy=True)
        r, b = x.new_empty(x.shape[1:]), b if inputs.gain is not None else None
    tensors = Forward(x, m, w, b, *rows_of(inputs), d, start, r, marks(inputs), output, cells, last)
    sizes = sizes_of(inputs, form, (w.stride(0), 1, w.stride(1), x.shape[-1] * w.stride(1)))
    constants = cell.step, cell.inner_step, static_of(inputs, form)
    return Launch(scan_kernel, grid(inputs, form), tensors, sizes, constants, form.options)


def rows_of(inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
    """The norm's gain and the step's parameters, dense."""
    p, gains = inputs.p, inputs.equations.gains
    if p is None or gains in (0, p.shape[1]):
        return (p, None) if gains else (None, p)
    return p[:, :gains].contiguous(), p[:, gains:].contiguous()


def scan_backward(
    inputs: Inputs,
    prev: Tensor,
    n: Tensor,
    scale: Tensor | None,
    doutput: Tensor | None,
    dcells: Tensor | None,
    dlast: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dr, ds0 and dp, as `rnnkit.reference.scan.scan_backward`."""
    inputs = ready(inputs)
    x, cell = inputs.x, inputs.equations
    dx = x.new_empty(x.shape)
    dr = None if cell.additive else x.new_empty(x.shape)
    form = choose_form(inputs, backward=True)
    arriving = {"doutput": doutput, "dcells": dcells, "dlast": dlast}
    launch = backward_launch(inputs, form, prev, n, scale, arriving, dx, dr)
    with torch.cuda.device_of(x):
        if form.resident:
            launch.go()
        else:
            stepwise.backward(inputs, launch, n, scale)
    ds0, dp = launch.tensors.ds0, launch.tensors.dp
    return dx, dx if dr is None else dr, ds0.to(x.dtype), dp.sum(0).to(x.dtype)


def backward_launch(
    inputs: Inputs,
    form: Form,
    prev: Tensor,
    r: Tensor,
    scale: Tensor | None,
    arriving: dict[str, Tensor | None],
    dx: Tensor,
    dr: Tensor | None,
) -> Launch:
    x, m, w, d = (getattr(inputs, name) for name in ("x", "m", "w", "d"))
    _, B, N, _, H = x.shape
    wide, cell = torch.promote_types(x.dtype, torch.float32), inputs.equations
    known = equations(inputs.cell)
    assert known is not None
    shape, dlast = (cell.states, B, N, H), arriving["dlast"]
    dense = {k: None if v is None else v.contiguous() for k, v in arriving.items()}
    start = x.new_zeros(shape, dtype=wide) if dlast is None else dlast.to(wide).contiguous()
    ds0 = x.new_empty(shape, dtype=wide) if form.resident else start.clone()
    dense["dlast"] = start if form.resident else ds0
    dp = x.new_zeros(grid(inputs, form)[0], N, cell.rows - cell.gains, H, dtype=wide)
    w_strides = (w.stride(0), w.stride(1), 1, H * w.stride(1))
    if form.resident and w.dtype.itemsize > 2:
        # The matrix units read wide operands along the inner dimension only: turned by the
        # compiler, the weights would stand on chip twice.
        w = w.mT.contiguous()
        w_strides = (w.stride(0), 1, w.stride(1), H)
    if cell.norm is None and sums(cell, form.resident):
        r = r.add_(x)  # it was made for this call alone
    gain, p = rows_of(inputs)
    b = None if gain is None else inputs.b
    scale = None if scale is None else scale.contiguous()
    more = dict(flags=marks(inputs), dx=dx, dr=dr, ds0=ds0, dp=dp)
    tensors = Backward(x, m, w, b, gain, p, d, r.contiguous(), scale, prev, **dense, **more)
    sizes = sizes_of(inputs, form, w_strides)
    constants = known.vjp, known.inner_vjp, static_of(inputs, form)
    tiles = grid(inputs, form)
    return Launch(scan_backward_kernel, tiles, tensors, sizes, constants, form.options)
