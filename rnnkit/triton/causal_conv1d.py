"""Launches the kernels of the causal convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..activations import parts
from ..ops.convolution import Convolution, allocate, allocate_gradients, like
from ..reference.activations import ACTIVATIONS as BY_TORCH
from .activations import ACTIVATIONS
from .convolution_kernels import correlate_kernel, weights_kernel
from .fit import AMD, INTERPRETED
from .launch import Launch
from .product import precision_of

if TYPE_CHECKING:
    from ..dispatch import LayerProblem

# Reduced channels below which the matrix units would multiply mostly zeros.
FEW = 8
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
    the others: of batch, channels and time.
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


def why_not(problem: LayerProblem) -> str | None:
    """Why the kernels cannot run this problem; None if they can."""
    if problem.forward_mode:
        return "its kernels have no forward-mode derivatives"
    if problem.device.type == "cpu" and not INTERPRETED:
        return "its kernels run on a GPU, and on a CPU only with TRITON_INTERPRET=1"
    if problem.device.type not in ("cpu", "cuda"):
        return f"it has no kernels for device type {problem.device.type!r}"
    if INTERPRETED and problem.dtype == torch.bfloat16:
        return "triton's interpreter computes bfloat16 wrongly"
    return None


def causal_conv1d(call: Convolution) -> Tensor:
    """y (N, O, ceil(L / stride)), O / 2 channels if gated."""
    if in_pieces(call):
        y = BY_TORCH[call.activation].value(*sums(call).chunk(2, 1))
        return allocate(call).copy_(y)
    y = allocate(call)
    run(forward(call, y))
    return y


def causal_conv1d_backward(
    call: Convolution, dy: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """dx, dstate, dw and db, as `rnnkit.reference.causal_conv1d.causal_conv1d_backward`."""
    dx, dstate, dw, db = allocate_gradients(call, wanted)
    da = gradient_of_sums(call, dy)
    if wanted[0]:
        run(inputs_gradient(call, da, dx, dstate))
    if wanted[1]:
        parts_of = partials(call)
        run(parameters_gradient(call, da, *parts_of))
        dw.copy_(parts_of[0].sum(0))
        if call.bias is not None:
            db.copy_(parts_of[1].sum(0))
    return dx, dstate, dw, db


def in_pieces(call: Convolution) -> bool:
    """Whether a gate's two halves read other channels, so that one program cannot have both."""
    return parts(call.activation) == 2 and call.groups > 1 and not depthwise(call)


def sums(call: Convolution) -> Tensor:
    """What the activation takes, (N, O, ceil(L / stride))."""
    plain = call._replace(activation=None)
    a = allocate(plain)
    run(forward(plain, a))
    return a


def gradient_of_sums(call: Convolution, dy: Tensor) -> Tensor:
    """The gradient of what the activation takes; the sums are computed anew."""
    if call.activation is None:
        return dy
    if in_pieces(call):
        return torch.cat(BY_TORCH[call.activation].vjp(dy, *sums(call).chunk(2, 1)), 1)
    da = like(call.x, (call.x.shape[0], call.weight.shape[0], call.length), call.channels_last)
    run(forward(call, da, dy))
    return da


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
    return min(most, max(least, 1 << (size - 1).bit_length()))


def static_of(call: Convolution, tiles: int, turned: bool, T: int, cols: int, red: int) -> Static:
    dtype = call.x.dtype
    # Triton's compiler fails on some float64 products of tiles.
    dot = not depthwise(call) and min(red, cols) >= FEW
    dot &= dtype != torch.float64 or INTERPRETED
    values = (
        tiles,
        turned,
        dot,
        tl.float64 if dtype == torch.float64 else tl.float32,
        precision_of(dtype, "conv"),
        above(T, 16, 64),
        above(cols, 16, 64) if dot else above(cols, 1, 32),
        above(red, 16, 32) if dot else 1,
    )
    return Static(*map(tl.constexpr, values))


def forward(
    call: Convolution, out: Tensor, dy: Tensor | None = None, add: Tensor | None = None
) -> Launch:
    """y; or, given its gradient, that of the sums. add (N, O, 1 or length) joins the sums."""
    (rows, red, K), count = call.weight.shape, parts(call.activation)
    one = depthwise(call) or call.groups == 1
    cols, per = (rows // count if one else rows // call.groups), rows // call.groups
    step, deep, tap = call.weight.stride()
    sizes = Sizes(
        *(call.x.shape[0], K, call.x.shape[2], call.length, 0, call.context),
        *(call.stride, call.dilation, cols, red, per, 0, (per * step, step, deep, tap)),
        *map(strides, (call.x, call.state, add, dy, out, None)),
    )
    bias = None if call.bias is None else call.bias.contiguous()
    tensors = Tensors(call.x, call.state, call.weight, bias, add, dy, out, None)
    value, vjp = ACTIVATIONS[call.activation]
    static = static_of(call, count, False, call.length, cols, red)
    return correlate(
        tensors, sizes, value if dy is None else vjp, static, 1 if one else call.groups
    )


def inputs_gradient(
    call: Convolution, da: Tensor, dx: Tensor, dstate: Tensor, add: Tensor | None = None
) -> Launch:
    """dx and dstate from the gradient of the sums. add joins dx."""
    rows, red, K = call.weight.shape
    each, first = rows // call.groups, 0 if call.state is None else -call.context
    step, deep, tap = call.weight.stride()
    if depthwise(call):
        cols, per, groups, w = call.groups, 1, 1, (0, each * step, step, tap)
    else:
        cols, per, groups, w = red, red, call.groups, (each * step, deep, step, tap)
    before = None if call.state is None else dstate
    sizes = Sizes(
        *(call.x.shape[0], K, call.length, call.x.shape[2] - first, first, call.context),
        *(call.stride, call.dilation, cols, each, per, 0, w),
        *map(strides, (da, None, add, None, dx, before)),
    )
    tensors = Tensors(da, None, call.weight, None, add, None, dx, before)
    static = static_of(call, 1, True, call.x.shape[2] - first, cols, each)
    return correlate(tensors, sizes, ACTIVATIONS[None][0], static, groups)


def correlate(tensors: Tensors, sizes: Sizes, function: Any, static: Static, groups: int) -> Launch:
    tiles = triton.cdiv(sizes.T, static.BM.value), triton.cdiv(sizes.cols, static.BN.value)
    grid = (sizes.N * tiles[0], groups * tiles[1], 1)
    return Launch(correlate_kernel, grid, (tensors, sizes, function, static), OPTIONS)


class Slices(NamedTuple):
    """How time is cut for the parameters' gradient: its `count` slices are summed afterwards."""

    groups: int
    cols: int
    programs: int
    each: int
    count: int
    static: Static


def slices(call: Convolution) -> Slices:
    (rows, red, K), one = call.weight.shape, depthwise(call)
    groups, cols = (1, rows) if one else (call.groups, rows // call.groups)
    static = static_of(call, 1, False, call.length, cols, red)
    tiles = call.x.shape[0] * triton.cdiv(call.length, static.BM.value)
    programs = triton.cdiv(cols, static.BN.value) * triton.cdiv(red, static.BK.value) * groups
    each = triton.cdiv(tiles, min(tiles, max(1, PROGRAMS // (programs * K))))
    return Slices(groups, cols, programs, each, triton.cdiv(tiles, each), static)


def partials(call: Convolution, *many: int) -> tuple[Tensor, Tensor]:
    """Uninitialised sums of dw and db over each slice of time, (*many, slices, ...)."""
    x, w, count = call.x, call.weight, slices(call).count
    wide = torch.promote_types(x.dtype, torch.float32)
    dw = x.new_empty(*many, count, *w.shape, dtype=wide)
    return dw, x.new_empty(*many, count, w.shape[0], dtype=wide)


def parameters_gradient(call: Convolution, da: Tensor, dw: Tensor, db: Tensor) -> Launch:
    """The partial sums (slices, ...) of dw and db from the gradient of the sums."""
    (rows, red, K), cut = call.weight.shape, slices(call)
    sizes = Sizes(
        *(call.x.shape[0], K, call.x.shape[2], call.length, 0, call.context),
        *(call.stride, call.dilation, cut.cols, red, rows // call.groups, cut.each, (0, 0, 0, 0)),
        *map(strides, (call.x, call.state, None, da)),
        *((dw.stride(0), dw.stride(1), K), (rows, 1, 1)),
    )
    tensors = Tensors(call.x, call.state, None, None, None, da, dw, db)
    grid = (cut.count, cut.programs, K)
    return Launch(weights_kernel, grid, (tensors, sizes, cut.static), OPTIONS)
