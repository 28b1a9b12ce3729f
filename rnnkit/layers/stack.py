"""What WaveNet blocks hand to the operator that runs them in one go, and when it may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import module

from ..projection import total
from ..torch_kernels.wavenet import convolve
from .conv import CausalConv1d

# Any: torch types a module's attributes as tensors or modules.
Blocks = Sequence[Any]
PARTS = ("conv", "residual", "skip", "local_condition", "global_condition")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Weights(NamedTuple):
    """Those of D blocks: w (2C, C, K), b (2C,), r (C, C), rb (C,) of each; r and rb may lack the
    last."""

    w: list[Tensor]
    b: list[Tensor]
    r: list[Tensor]
    rb: list[Tensor]


def weights(blocks: Blocks) -> Weights:
    """The blocks' weights, as they are now: a parametrization makes them anew each time."""
    residuals = [block.residual for block in blocks if block.residual is not None]
    return Weights(
        [block.conv.weight for block in blocks],
        [block.conv.bias for block in blocks],
        [residual.weight[..., 0] for residual in residuals],
        [residual.bias for residual in residuals],
    )


def skip_weights(blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Weight (S, D * C, 1) and bias (S,) of the sum of all skips."""
    weight = torch.cat([block.skip.weight for block in blocks], 1)
    # A sum of stacked ones would give each the same memory for its gradient.
    bias = total(*(block.skip.bias for block in blocks))
    assert bias is not None
    return weight, bias


def dilations(blocks: Blocks) -> tuple[int, ...]:
    return tuple(block.conv.dilation[0] for block in blocks)


def condition(
    blocks: Blocks, local_condition: Tensor | None = None, global_condition: Tensor | None = None
) -> Tensor | None:
    """V h of all blocks, (N, D * 2C, L), or (N, D * 2C, 1) if it is global only."""
    found = None
    if local_condition is not None:
        v = torch.cat([block.local_condition.weight for block in blocks])
        found = convolve(local_condition, v, None)
    if global_condition is not None:
        v = torch.cat([block.global_condition.weight for block in blocks])
        same = F.linear(global_condition, v)[..., None]
        found = same if found is None else found + same
    return found


def check_conditions(
    layer: Any, x: Tensor, local_condition: Tensor | None, global_condition: Tensor | None
) -> None:
    """ValueError unless the conditions are those of x (N, C, L) or (C, L) that the layer takes."""
    batch, steps = x.shape[:-2], x.shape[-1]
    local, same = layer.local_channels, layer.global_channels
    check_condition("local", local_condition, local, (*batch, local, steps))
    check_condition("global", global_condition, same, (*batch, same))


def check_condition(
    kind: str, value: Tensor | None, channels: int | None, expected: tuple[int | None, ...]
) -> None:
    """ValueError unless value is given where there are channels for it, in the expected shape."""
    if channels is None:
        if value is not None:
            raise ValueError(
                f"{kind}_condition must not be given, as {kind}_channels is None, "
                f"got {tuple(value.shape)}"
            )
    elif value is None or value.shape != expected:
        got = None if value is None else tuple(value.shape)
        raise ValueError(f"{kind}_condition must be {expected}, got {got}")


def given(
    local_condition: Tensor | None, global_condition: Tensor | None, unbatched: bool = False
) -> dict[str, Tensor]:
    """The conditions that there are, by name; with a dimension N of 1 if unbatched."""
    named = {"local_condition": local_condition, "global_condition": global_condition}
    return {k: v[None] if unbatched else v for k, v in named.items() if v is not None}


def fusible(blocks: Blocks) -> bool:
    """Whether the blocks' weights say all that they do: no hook, and no part put in its place; and
    whether they can be one tensor."""
    if module._has_any_global_hook() or any(b.residual is None for b in blocks[:-1]):
        return False
    plain = not any(hooked(block) for block in blocks) and all(
        is_plain(name, part) and not hooked(part)
        for block in blocks
        for name in PARTS
        if (part := getattr(block, name)) is not None
    )
    return plain and all(b.conv.kernel_size == blocks[0].conv.kernel_size for b in blocks)


def is_plain(name: str, part: Any, activation: str | None = None) -> bool:
    """Whether a block's part is, perhaps parametrized, the product that a block makes there."""
    kind = torch.nn.Linear if name == "global_condition" else CausalConv1d
    # A parametrization derives a class, but leaves its forward.
    if type(part).forward is not kind.forward or "forward" in part.__dict__:
        return False
    if (part.bias is None) != name.endswith("condition"):
        return False
    if kind is torch.nn.Linear:
        return True
    options = (part.groups, part.stride, part.activation, part.channels_last)
    return options == (1, (1,), activation, False) and (name == "conv" or part.kernel_size == (1,))


def hooked(m: torch.nn.Module) -> bool:
    """Whether calling the module would run a hook."""
    return any(getattr(m, hooks) for hooks in HOOKS)
