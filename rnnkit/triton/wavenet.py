"""Launches the kernels of WaveNet's residual blocks, block by block.

A block is one launch forward while its C channels fit into one program, else two: the gated
convolution, and the product that goes on. Backward it is one launch (or two) for the gradient of
the gate's sums, one for that of the block's input, and two for its parameters'.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.blocks import Blocks, allocate, allocate_gradients
from ..precision import precision_of
from . import convolution as conv
from .causal_conv1d import why_not
from .fit import AMD, INTERPRETED
from .launch import Launch
from .wavenet_kernels import block_gradient_kernel, block_kernel

__all__ = ["wavenet", "wavenet_backward", "why_not"]

# The most channels that one program holds, of the gate and of the product after it.
WIDEST = 128


def fused(blocks: Blocks, amd: bool = AMD) -> bool:
    """Whether one program holds all channels: where the matrix units take the products, up to the
    width at which the compiled kernels keep all in registers, as `benchmarks static` shows.
    """
    C, dtype = blocks.channels, blocks.x.dtype
    if dtype.itemsize > 2 and not INTERPRETED:
        fast = dtype == torch.float32 and (amd or precision_of(dtype, "conv") == "tf32")
        return fast and conv.FEW <= C <= WIDEST // 2
    wide = dtype.itemsize == 2 and C % 16 == 0 and not amd
    return conv.FEW <= C <= (WIDEST if wide else WIDEST // 2)


def ready(blocks: Blocks) -> Blocks:
    """The blocks as the kernels take them: near tensors, and each tap's weights side by side."""
    condition = None if blocks.condition is None else conv.near(blocks.condition)
    w = blocks.w.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    return blocks._replace(x=conv.near(blocks.x), w=w, condition=condition)


def wavenet(blocks: Blocks) -> tuple[Tensor, Tensor]:
    """xs (R, N, C, L), what each block hands on, and z (N, D * C, L), the gates of all blocks."""
    blocks = ready(blocks)
    xs, z = allocate(blocks)
    whole = fused(blocks)
    for i in range(len(blocks.dilations)):
        entering = blocks.x if i == 0 else xs[i - 1]
        onward = xs[i] if i < xs.shape[0] else None
        if whole:
            conv.run(forward(blocks, i, entering, blocks.of(z, i), onward))
            continue
        add = blocks.addend(i)
        conv.run(conv.forward(blocks.gate(i, entering), blocks.of(z, i), add=add))
        if onward is not None:
            call = blocks.onward(i, blocks.of(z, i))
            conv.run(conv.forward(call, onward, add=entering))
    return xs, z


def wavenet_backward(
    blocks: Blocks, xs: Tensor, z: Tensor, dxs: Tensor | None, dz: Tensor | None
) -> tuple[Tensor, ...]:
    """dx, dw, db, dr, drb and dcondition, as `rnnkit.reference.wavenet.wavenet_backward`."""
    blocks = ready(blocks)
    dx, dw, db, dr, drb, dcondition = allocate_gradients(blocks)
    (N, C, L), D, R = blocks.x.shape, len(blocks.dilations), xs.shape[0]
    dz = torch.zeros_like(z) if dz is None else conv.near(dz)
    dxs = None if dxs is None else dxs.contiguous()
    gates = conv.partials(blocks.gate(0, blocks.x), D)
    products = conv.partials(blocks.onward(0, blocks.of(z, 0)), R) if R else ()
    # The gradient of a condition of every step is that of all blocks' sums.
    kept = dcondition.dim() == 3 and dcondition.shape[2] == L
    sums = dcondition if kept else dx.new_empty(N, 2 * C, L)
    donward: Tensor | None = None
    for i in reversed(range(D)):
        entering = blocks.x if i == 0 else xs[i - 1]
        da = blocks.of(sums, i if kept else 0, 2)
        if dxs is not None and i < R:
            donward = dxs[i] if donward is None else donward + dxs[i]
        gradient_of_sums(blocks, i, entering, da, blocks.of(dz, i), donward)
        if blocks.condition is not None and not kept:
            blocks.of(dcondition, i, 2).copy_(da.sum(2, keepdim=True))
        if i < R and donward is not None:
            call = blocks.onward(i, blocks.of(z, i))
            conv.run(conv.parameters_gradient(call, donward, *(v[i] for v in products)))
        elif i < R:
            for v in products:
                v[i].zero_()
        gate, new = blocks.gate(i, entering), dx if i == 0 else torch.empty_like(dx)
        conv.run(conv.parameters_gradient(gate, da, *(v[i] for v in gates)))
        conv.run(conv.inputs_gradient(gate, da, new, new, add=donward))
        donward = new
    for out, v in zip((dw, db, dr, drb), (*gates, *products), strict=False):
        out.copy_(v.sum(1).view_as(out))
    return dx, dw, db, dr, drb, dcondition


def gradient_of_sums(
    blocks: Blocks, i: int, entering: Tensor, da: Tensor, dz: Tensor, donward: Tensor | None
) -> None:
    """Writes the gradient of the i-th gate's sums into da; the sums are computed anew."""
    if fused(blocks):
        conv.run(backward(blocks, i, entering, da, dz, donward))
        return
    if donward is not None:
        call = blocks.onward(i, dz)
        through = torch.empty_like(donward)
        conv.run(conv.inputs_gradient(call, donward, through, through, add=dz))
        dz = through
    conv.run(conv.forward(blocks.gate(i, entering), da, dz, add=blocks.addend(i)))


def forward(blocks: Blocks, i: int, entering: Tensor, z: Tensor, onward: Tensor | None) -> Launch:
    """A block whole."""
    launch = conv.forward(blocks.gate(i, entering), z, add=blocks.addend(i))
    r, rb = (None, None) if onward is None else (blocks.r[i], blocks.rb[i].contiguous())
    more = r, rb, onward, blocks.r.stride()[1:], conv.strides(onward)
    return over_channels(blocks, launch, block_kernel, *more)


def backward(
    blocks: Blocks, i: int, entering: Tensor, da: Tensor, dz: Tensor, donward: Tensor | None
) -> Launch:
    """The gradient of the i-th gate's sums."""
    launch = conv.forward(blocks.gate(i, entering), da, dz, add=blocks.addend(i))
    r = None if donward is None else blocks.r[i]
    more = r, donward, blocks.r.stride()[1:], conv.strides(donward)
    return over_channels(blocks, launch, block_gradient_kernel, *more)


def over_channels(blocks: Blocks, launch: Launch, kernel: object, *more: object) -> Launch:
    """The launch of a convolution as one of programs that each have all channels."""
    tensors, sizes, _, static = launch.arguments
    columns = conv.above(blocks.channels, 16, WIDEST)
    # Tiles and warps for which the compiled kernels keep all in registers.
    wide = columns * blocks.x.dtype.itemsize > 128
    steps = min(static.BM.value, 32 if wide else 64)
    tile = {"BM": steps, "BN": columns, "BK": conv.above(blocks.channels, 16, 32), "DOT": True}
    static = static._replace(**{name: tl.constexpr(value) for name, value in tile.items()})
    grid = (sizes.N * triton.cdiv(sizes.T, steps), 1, 1)
    options = launch.options | {"num_warps": 4 if columns <= 32 else 8}
    return Launch(kernel, grid, (tensors, sizes, *more, static), options)
