"""Where kernels run at all, whatever their operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .fit import INTERPRETED

if TYPE_CHECKING:
    from ..dispatch import LayerProblem, Problem


def why_unusable(problem: Problem | LayerProblem) -> str | None:
    """Why no kernel can run this problem; None if there may be one that can."""
    if problem.forward_mode:
        return "its kernels have no forward-mode derivatives"
    if problem.device.type == "cpu" and not INTERPRETED:
        return "its kernels run on a GPU, and on a CPU only with TRITON_INTERPRET=1"
    if problem.device.type not in ("cpu", "cuda"):
        return f"it has no kernels for device type {problem.device.type!r}"
    if INTERPRETED and problem.dtype == torch.bfloat16:
        return "triton's interpreter computes bfloat16 wrongly"
    return None
