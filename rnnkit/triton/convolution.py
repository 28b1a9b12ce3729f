"""The launches of the causal convolution's kernels: y, and the gradients of all that it reads."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..activations import parts
from ..ops.convolution import Convolution
from ..precision import precision_of
from .activations import ACTIVATIONS
from .convolution_kernels import correlate_kernel, weights_kernel
from .fit import AMD, INTERPRETED
from .launch import Launch

# Reduced channels below which the matrix units would multiply mostly zeros.
FEW = 8
# The elements of one row of the batch, which offsets within it must not pass.
SPAN = 2**31
# A limit keeps NVIDIA's compiler from aiming at less registers, for which it would spill.
OPTIONS = {"num_warps": 4, "num_stages": 3} | ({} if AMD else {"maxnreg": 255})
# Programs that keep a GPU busy, where there is no device to ask; the interpreter runs them in turn.
PROGRAMS = 3 if INTERPRETED else 264


class Tensors(NamedTuple):
    """What the kernels read and write. out and before: the result, and what stands before time 0;
    of the weights' kernel, the partial sums of dw and db.
    """

    source: Any
    past: Any
    w: Any
    b: Any
    add: Any
    dy: Any
    out: Any
    before: Any


class Sizes(NamedTuple):
    """L: the source's length. T: the steps of the result, from time `first` on. cols, red: columns
    of the result and reduced channels, of a group. per: columns that share their channels.
    slice: tiles of time that one program sums. w: strides of groups, columns, channels and taps;
    the others: of batch, channels and time. end: as of `arguments.Sizes`.
    """

    N: Any
    K: Any
    L: Any
    T: Any
    first: Any
    context: Any
    stride: Any
    dilation: Any
    cols: Any
    red: Any
    per: Any
    slice: Any
    w: Any
    source: Any
    past: Any
    add: Any
    dy: Any
    out: Any
    before: Any
    end: Any = None


class Static(NamedTuple):
    """What a kernel is compiled for; each is a tl.constexpr. PARTS: 2 if gated."""

    PARTS: Any
    TURNED: Any
    DOT: Any
    DTYPE: Any
    PRECISION: Any
    BM: Any
    BN: Any
    BK: Any


def near(v: Tensor) -> Tensor:
    """The tensor (N, C, L), copied if offsets within a row would not fit into 32 bits."""
    (_, C, L), (_, channel, time) = v.shape, v.stride()
    return v.contiguous() if (C - 1) * channel + (L - 1) * time >= SPAN else v


def ready(call: Convolution) -> Convolution:
    """The call as the kernels take it: near tensors, and each tap's weights side by side."""
    state = None if call.state is None else near(call.state)
    weight = call.weight.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    return call._replace(x=near(call.x), weight=weight, state=state)


def run(launch: Launch) -> None:
    with torch.cuda.device_of(launch.arguments[0].source):
        launch.go()


def depthwise(call: Convolution) -> bool:
    return call.weight.shape[1] == 1 and call.groups > 1


def strides(v: Tensor | None) -> tuple[int, ...]:
    """Of batch, channels and time; a dimension of one element is repeated."""
    if v is None:
        return (0, 0, 0)
    return tuple(0 if size == 1 else step for size, step in zip(v.shape, v.stride(), strict=True))


def above(size: int, least: int, most: int) -> int:
    """The next power of two, within bounds."""
    return min(most, max(least, triton.next_power_of_2(size)))


def static_of(call: Convolution, tiles: int, turned: bool, T: int, cols: int, red: int) -> Static:
    dtype, precision = call.x.dtype, precision_of(call.x.dtype, "conv")
    # Triton's compiler fails on some float64 products of tiles.
    dot = not depthwise(call) and min(red, cols) >= FEW
    dot &= dtype != torch.float64 or INTERPRETED
    # Without the matrix units, a thread holds whole rows and columns of the operands.
    small = dtype == torch.float32 and precision == "ieee"
    narrow = small or (dtype == torch.float32 and tiles > 1)
    values = (
        tiles,
        turned,
        dot,
        tl.float64 if dtype == torch.float64 else tl.float32,
        precision,
        above(T, 16, 32 if small else 64),
        above(cols, 16, 32 if narrow else 64)
        if dot
        else above(cols, 1, 16 if dtype == torch.float64 else 32),
        above(red, 16, 16 if small else 32) if dot else 1,
    )
    return Static(*map(tl.constexpr, values))


def sizes_of(
    call: Convolution,
    tensors: Tensors,
    T: int,
    columns: tuple[int, int, int],
    w: tuple[int, ...] = (0, 0, 0, 0),
) -> Sizes:
    """columns: cols, red and per. The rest of a forward launch; others replace what differs."""
    timed = (tensors.source, tensors.past, tensors.add, tensors.dy, tensors.out, tensors.before)
    static = call.context, call.stride, call.dilation
    shape = call.x.shape[0], call.weight.shape[2], tensors.source.shape[2]
    return Sizes(*shape, T, 0, *static, *columns, 0, w, *map(strides, timed))


def forward(
    call: Convolution, out: Tensor, dy: Tensor | None = None, add: Tensor | None = None
) -> Launch:
    """y; or, given its gradient, that of the sums. add (N, O, 1 or length) joins the sums."""
    (rows, red, _), count = call.weight.shape, parts(call.activation)
    one = depthwise(call) or call.groups == 1
    cols, per = (rows // count if one else rows // call.groups), rows // call.groups
    step, deep, tap = call.weight.stride()
    bias = None if call.bias is None else call.bias.contiguous()
    tensors = Tensors(call.x, call.state, call.weight, bias, add, dy, out, None)
    sizes = sizes_of(call, tensors, call.length, (cols, red, per), (per * step, step, deep, tap))
    value, vjp = ACTIVATIONS[call.activation]
    static = static_of(call, count, False, call.length, cols, red)
    function, groups = value if dy is None else vjp, 1 if one else call.groups
    return correlate(tensors, sizes, function, static, groups)


def inputs_gradient(
    call: Convolution, da: Tensor, dx: Tensor, dstate: Tensor, add: Tensor | None = None
) -> Launch:
    """dx and dstate from the gradient of the sums. add joins dx."""
    rows, red, _ = call.weight.shape
    each, first = rows // call.groups, 0 if call.state is None else -call.context
    step, deep, tap = call.weight.stride()
    if depthwise(call):
        cols, per, groups, w = call.groups, 1, 1, (0, each * step, step, tap)
    else:
        cols, per, groups, w = red, red, call.groups, (each * step, deep, step, tap)
    before = None if call.state is None else dstate
    tensors, T = Tensors(da, None, call.weight, None, add, None, dx, before), dx.shape[2] - first
    sizes = sizes_of(call, tensors, T, (cols, each, per), w)._replace(first=first)
    static = static_of(call, 1, True, T, cols, each)
    return correlate(tensors, sizes, ACTIVATIONS[None][0], static, groups)


def correlate(tensors: Tensors, sizes: Sizes, function: Any, static: Static, groups: int) -> Launch:
    tiles = triton.cdiv(sizes.T, static.BM.value), triton.cdiv(sizes.cols, static.BN.value)
    grid = (sizes.N * tiles[0] * groups * tiles[1], 1, 1)
    return Launch(correlate_kernel, grid, (tensors, sizes, function, static), OPTIONS)


class Slices(NamedTuple):
    """How time is cut for the parameters' gradient: `count` slices are summed afterwards.

    cols: of a group. programs: of one slice and tap. each: tiles of time in a slice.
    """

    cols: int
    programs: int
    each: int
    count: int
    static: Static


def slices(call: Convolution) -> Slices:
    (rows, red, K), one = call.weight.shape, depthwise(call)
    groups, cols = (1, rows) if one else (call.groups, rows // call.groups)
    static = static_of(call, 1, False, call.length, cols, red)
    # Here time is the depth of the products.
    static = static._replace(BM=tl.constexpr(max(16, static.BM.value // 2)))
    tiles = call.x.shape[0] * triton.cdiv(call.length, static.BM.value)
    programs = triton.cdiv(cols, static.BN.value) * triton.cdiv(red, static.BK.value) * groups
    each = triton.cdiv(tiles, min(tiles, max(1, PROGRAMS // (programs * K))))
    return Slices(cols, programs, each, triton.cdiv(tiles, each), static)


def partials(call: Convolution, *many: int) -> tuple[Tensor, Tensor]:
    """Uninitialised sums of dw and db over each slice of time, (*many, slices, ...)."""
    x, w, count = call.x, call.weight, slices(call).count
    wide = torch.promote_types(x.dtype, torch.float32)
    dw = x.new_empty(*many, count, *w.shape, dtype=wide)
    return dw, x.new_empty(*many, count, w.shape[0], dtype=wide)


def parameters_gradient(call: Convolution, da: Tensor, dw: Tensor, db: Tensor) -> Launch:
    """The partial sums (slices, ...) of dw and db from the gradient of the sums."""
    (rows, red, K), cut = call.weight.shape, slices(call)
    tensors = Tensors(call.x, call.state, None, None, None, da, None, None)
    sizes = sizes_of(call, tensors, call.length, (cut.cols, red, rows // call.groups))
    sizes = sizes._replace(slice=cut.each, out=(dw.stride(0), dw.stride(1), K), before=(rows,))
    arguments = (tensors._replace(out=dw, before=db), sizes, cut.static)
    options = OPTIONS | {"num_stages": 2}
    return Launch(weights_kernel, (cut.count * cut.programs * K, 1, 1), arguments, options)
