"""Launches the recurrent kernels: one launch for a whole sequence where the weights fit on chip,
else one matrix product and one launch a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.sequence import Inputs, flags, fresh, runs
from ..reference.scan import product
from .arguments import Backward, Forward, Sizes, Static
from .cells import EQUATIONS
from .fit import AMD, INTERPRETED, Form, choose_form
from .kernels import scan_backward_kernel, scan_kernel

if TYPE_CHECKING:
    from ..dispatch import Problem

# What the second dimension of a grid takes.
MOST_GROUPS = 65535
# The kernels compute offsets within a tile of rows in 32 bits.
LONGEST_STRIDE = 2**31 // 64


def why_not(problem: Problem) -> str | None:
    """Why the kernels cannot run this problem; None if they can."""
    if problem.cell not in EQUATIONS:
        return f"cell {problem.cell!r} has no Triton equations"
    if problem.device.type == "cpu" and not INTERPRETED:
        return "its kernels run on a GPU, and on a CPU only with TRITON_INTERPRET=1"
    if problem.device.type not in ("cpu", "cuda"):
        return f"it has no kernels for device type {problem.device.type!r}"
    if INTERPRETED and problem.dtype == torch.bfloat16:
        return "triton's interpreter computes bfloat16 wrongly"
    if problem.N > MOST_GROUPS:
        return f"N = {problem.N} groups: a GPU's grid takes at most {MOST_GROUPS}"
    if problem.runs > 31:
        return f"reverse has {problem.runs} runs, and its kernels take at most 31"
    return None


class Launch(NamedTuple):
    """A kernel with its grid, arguments and options: run by `go`, or compiled without a GPU."""

    kernel: Any
    grid: tuple[int, int, int]
    tensors: Any  # Forward or Backward
    sizes: Sizes
    constants: tuple[Any, Static]
    options: dict[str, int]

    def go(self, first: int = 0, **tensors: Tensor) -> None:
        changed = self.tensors._replace(**tensors)
        sizes = self.sizes._replace(first=first)
        self.kernel[self.grid](changed, sizes, *self.constants, **self.options)


def sizes_of(inputs: Inputs, form: Form, w_strides: tuple[int, ...]) -> Sizes:
    x, m = inputs.x, inputs.m
    T, B, N, _, H = x.shape
    m_strides = (0,) * 4 if m is None else m.stride()[:4]
    return Sizes(0, T if form.resident else 1, T, B, N, H, x.stride()[:4], m_strides, w_strides)


def static_of(inputs: Inputs, form: Form) -> Static:
    cell, dtype = inputs.equations, inputs.x.dtype
    values = (
        cell.gates,
        cell.states,
        cell.rows,
        cell.masks,
        cell.additive,
        sum(back << k for k, back in enumerate(inputs.reverse)),
        len(inputs.reverse),
        form.resident,
        form.stream,
        tl.float64 if dtype == torch.float64 else tl.float32,
        "tf32" if rounds_to_tf32(dtype) else "ieee",
        form.rows,
        form.columns,
    )
    return Static(*map(tl.constexpr, values))


def marks(inputs: Inputs) -> Tensor | None:
    found = flags(inputs)
    return None if found is None else found.contiguous()


def rounds_to_tf32(dtype: torch.dtype) -> bool:
    """Whether float32 products use TF32, by the switch that torch.nn's recurrent layers follow."""
    switches: Any = torch.backends
    # Each inherits from the next where it says none.
    order = (switches.cudnn.rnn, switches.cudnn, switches)
    precision = next((s.fp32_precision for s in order if s.fp32_precision != "none"), "ieee")
    return dtype == torch.float32 and not AMD and precision == "tf32"


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
            stepwise(inputs, launch)
            last.copy_(launch.tensors.last)
    return output, cells, last


def forward_launch(
    inputs: Inputs, form: Form, start: Tensor, output: Tensor, cells: Tensor, last: Tensor
) -> Launch:
    x, m, w, b, p, d = (getattr(inputs, name) for name in ("x", "m", "w", "b", "p", "d"))
    r = None
    if not form.resident:
        # The state between the steps, in the precision in which the kernel computes.
        start = last = start.to(torch.promote_types(start.dtype, torch.float32), copy=True)
        r = x.new_empty(x.shape[1:])
    tensors = Forward(x, m, w, b, p, d, start, r, marks(inputs), output, cells, last)
    sizes = sizes_of(inputs, form, (w.stride(0), 1, w.stride(1), x.shape[-1] * w.stride(1)))
    constants = EQUATIONS[inputs.cell].step, static_of(inputs, form)
    return Launch(scan_kernel, grid(inputs, form), tensors, sizes, constants, form.options)


def stepwise(inputs: Inputs, launch: Launch) -> None:
    """The forward scan a step at a time: the state's product with all weights, then the gates."""
    state, d = launch.tensors.last, inputs.d
    for k in range(inputs.x.shape[0]):
        h = state[0].to(inputs.x.dtype)
        r = product(h if d is None else (h * d).to(h.dtype), inputs.w, None)
        launch.go(first=k, r=r.contiguous())


def scan_backward(
    inputs: Inputs,
    prev: Tensor,
    r: Tensor,
    doutput: Tensor | None,
    dcells: Tensor | None,
    dlast: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx and dr (T, B, N, G, H), ds0 (S, B, N, H) and dp (N, P, H)."""
    inputs = ready(inputs)
    x, cell = inputs.x, inputs.equations
    dx = x.new_empty(x.shape)
    dr = None if cell.additive else x.new_empty(x.shape)
    form = choose_form(inputs, backward=True)
    arriving = {"doutput": doutput, "dcells": dcells, "dlast": dlast}
    launch = backward_launch(inputs, form, prev, r, arriving, dx, dr)
    with torch.cuda.device_of(x):
        if form.resident:
            launch.go()
        else:
            stepwise_backward(inputs, launch)
    ds0, dp = launch.tensors.ds0, launch.tensors.dp
    return dx, dx if dr is None else dr, ds0.to(x.dtype), dp.sum(0).to(x.dtype)


def backward_launch(
    inputs: Inputs,
    form: Form,
    prev: Tensor,
    r: Tensor,
    arriving: dict[str, Tensor | None],
    dx: Tensor,
    dr: Tensor | None,
) -> Launch:
    x, m, w, p, d = (getattr(inputs, name) for name in ("x", "m", "w", "p", "d"))
    _, B, N, _, H = x.shape
    wide, cell = torch.promote_types(x.dtype, torch.float32), inputs.equations
    shape, dlast = (cell.states, B, N, H), arriving["dlast"]
    dense = {k: None if v is None else v.contiguous() for k, v in arriving.items()}
    start = x.new_zeros(shape, dtype=wide) if dlast is None else dlast.to(wide).contiguous()
    ds0 = x.new_empty(shape, dtype=wide) if form.resident else start.clone()
    dense["dlast"] = start if form.resident else ds0
    dp = x.new_zeros(grid(inputs, form)[0], N, cell.rows, H, dtype=wide)
    w_strides = (w.stride(0), w.stride(1), 1, H * w.stride(1))
    if form.resident and w.dtype.itemsize > 2:
        # The matrix units read wide operands along the inner dimension only: turned by the
        # compiler, the weights would stand on chip twice.
        w = w.mT.contiguous()
        w_strides = (w.stride(0), 1, w.stride(1), H)
    r = (r.add_(x) if cell.additive else r).contiguous()  # r was made for this call alone
    more = dict(flags=marks(inputs), dx=dx, dr=dr, ds0=ds0, dp=dp)
    tensors = Backward(x, m, w, p, d, r, prev, **dense, **more)
    sizes = sizes_of(inputs, form, w_strides)
    constants = EQUATIONS[inputs.cell].vjp, static_of(inputs, form)
    tiles = grid(inputs, form)
    return Launch(scan_backward_kernel, tiles, tensors, sizes, constants, form.options)


def stepwise_backward(inputs: Inputs, launch: Launch) -> None:
    """The backward scan a step at a time: the gates, then dr's product with all weights."""
    tensors, ds, afresh = launch.tensors, launch.tensors.ds0, fresh(inputs)
    dr = tensors.dx if tensors.dr is None else tensors.dr
    for k in reversed(range(inputs.x.shape[0])):
        launch.go(first=k)
        dh = product(at_step(dr, inputs.reverse, k).flatten(-2), inputs.w.mT, None)
        dh = dh if inputs.d is None else dh * inputs.d
        if afresh is not None:
            dh = dh.masked_fill(at_step(afresh, inputs.reverse, k)[..., None], 0)
        ds[0] += dh


def at_step(v: Tensor, reverse: Sequence[bool], k: int) -> Tensor:
    """What each group of v (T, B, N, ...) holds at the group's own k-th step."""
    last = v.shape[0] - 1
    parts = [part[last - k if back else k] for part, back in runs(v, reverse, 2)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
