"""What a stack of WaveNet's residual blocks reads and gives: its arguments, and their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..activations import positive
from .convolution import Convolution


class Blocks(NamedTuple):
    """The arguments of `rnnkit::wavenet`; `ops.wavenet.wavenet` explains them."""

    x: Tensor
    w: Tensor
    b: Tensor
    r: Tensor
    rb: Tensor
    condition: Tensor | None
    dilations: Sequence[int]

    @property
    def channels(self) -> int:
        return self.x.shape[1]

    def of(self, z: Tensor, i: int, each: int = 1) -> Tensor:
        """The i-th block's channels of a tensor that holds all blocks': `each` times C."""
        return z.narrow(1, i * each * self.channels, each * self.channels)

    def addend(self, i: int) -> Tensor | None:
        """What joins the sums of the i-th block's gate."""
        return None if self.condition is None else self.of(self.condition, i, 2)

    def gate(self, i: int, entering: Tensor) -> Convolution:
        """The i-th block's dilated convolution of what enters it."""
        dilation = self.dilations[i]
        return Convolution(entering, self.w[i], self.b[i], None, 1, dilation, 1, "gated", False)

    def onward(self, i: int, z: Tensor) -> Convolution:
        """The i-th block's product of its z, to which the input is added."""
        return Convolution(z, self.r[i][..., None], self.rb[i], None, 1, 1, 1, None, False)


def allocate(blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Uninitialised xs (R, N, C, L) and z (N, D * C, L)."""
    x, (N, C, L) = blocks.x, blocks.x.shape
    return x.new_empty(blocks.r.shape[0], N, C, L), x.new_empty(N, blocks.w.shape[0] * C, L)


def allocate_gradients(blocks: Blocks) -> tuple[Tensor, ...]:
    """Uninitialised dx, dw, db, dr, drb and dcondition (empty if there is none)."""
    x, condition = blocks.x, blocks.condition
    dcondition = x.new_empty(0 if condition is None else condition.shape)
    return *(x.new_empty(v.shape) for v in blocks[:5]), dcondition


def cast(blocks: Blocks, dtype: torch.dtype) -> Blocks:
    """The same with every tensor in another dtype."""
    return Blocks(*(None if v is None else v.to(dtype) for v in blocks[:6]), blocks.dilations)  # type: ignore


def check(
    x: Tensor,
    w: Sequence[Tensor],
    b: Sequence[Tensor],
    r: Sequence[Tensor],
    rb: Sequence[Tensor],
    condition: Tensor | None,
    dilations: Sequence[int],
) -> None:
    """Raises, naming the argument, for the first one that does not fit the others."""
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(f"x must be (N, C, L) and floating, got {tuple(x.shape)} of {x.dtype}")
    (N, C, L), D, R = x.shape, len(w), len(r)
    if D == 0 or w[0].dim() != 3 or w[0].shape[2] == 0:
        raise ValueError("w must be of one block at least, each (2C, C, K) with K of at least 1")
    for dilation in dilations:
        positive("dilations", dilation)
    if R not in (D, D - 1):
        raise ValueError(f"r must be of D = {D} blocks, or of all but the last, got {R}")
    for name, value, count in (("b", b, D), ("rb", rb, R), ("dilations", dilations, D)):
        if len(value) != count:
            raise ValueError(f"{name} must be of {count} blocks, got {len(value)}")
    shapes = {"w": (2 * C, C, w[0].shape[2]), "b": (2 * C,), "r": (C, C), "rb": (C,)}
    for name, tensors in {"w": w, "b": b, "r": r, "rb": rb}.items():
        for i, v in enumerate(tensors):
            if v.shape != shapes[name]:
                raise ValueError(f"{name}[{i}] must be {shapes[name]}, got {tuple(v.shape)}")
    if condition is not None and condition.shape not in ((N, 2 * D * C, L), (N, 2 * D * C, 1)):
        got = tuple(condition.shape)
        raise ValueError(f"condition must be ({N}, {2 * D * C}, {L} or 1), got {got}")


def check_alike(blocks: Blocks) -> None:
    """TypeError unless all tensors have x's dtype and device."""
    x = blocks.x
    for name, value in blocks._asdict().items():
        if isinstance(value, torch.Tensor) and (value.dtype, value.device) != (x.dtype, x.device):
            raise TypeError(
                f"{name} must be of {x.dtype} on {x.device}, as x; "
                f"got {value.dtype} on {value.device}"
            )
