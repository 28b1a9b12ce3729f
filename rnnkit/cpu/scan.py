"""The recurrent kernels on a CPU: one parallel region for a whole sequence, in each direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..native.arguments import ready
from ..ops.layer import Whole
from ..ops.sequence import Inputs
from . import library
from .launch import Kept, backward, backward_through, forward, forward_through
from .memory import empty

if TYPE_CHECKING:
    from ..dispatch import Problem

__all__ = ["KEEPS", "WHOLE", "gradients", "note", "scan", "why_not"]

# Backward is faster where forward has kept what its products gave.
KEEPS = True
WHOLE = Whole("cpu", True, empty, forward_through, backward_through)
# The directions of the runs of groups are bits of one number.
MOST_RUNS = 63


def why_not(problem: Problem) -> str | None:
    """Why the kernels cannot run this problem; None if they can."""
    if problem.device.type != "cpu":
        return f"its kernels run on a CPU, not on {problem.device.type!r}"
    if problem.forward_mode:
        return "its kernels have no forward-mode derivatives"
    if problem.runs > MOST_RUNS:
        return f"reverse has {problem.runs} runs, and its kernels take at most {MOST_RUNS}"
    return library.why_no_kernels(problem.cell, problem.dtype)


def note(problem: Problem) -> str:
    """The instruction set in use."""
    names = library.instruction_sets()
    return f"compiled for {names[library.instruction_set]}" if names else "not compiled"


def scan(inputs: Inputs, keep: bool = False) -> tuple[Tensor, ...]:
    """output, cells and last; if `keep`, products and scales besides."""
    found, kept = forward(ready(inputs), keep)
    return found if kept is None else (*found, kept.products, kept.scales)


def gradients(
    inputs: Inputs,
    states: tuple[Tensor, ...],
    kept: tuple[Tensor, Tensor] | None,
    arriving: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, ...]:
    """dx, dw, db, ds0 and dp; `states` are output and cells, `kept` products and scales."""
    return backward(ready(inputs), states, kept and Kept(*kept), arriving)
