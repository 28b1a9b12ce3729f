"""What torch's operations are asked to run: whole layers, which torch itself differentiates."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..dispatch import LayerProblem


def why_not(problem: LayerProblem) -> str | None:
    """Why torch cannot run this problem of an operator that is parallel in time; None if it can."""
    if problem.extras is None:
        return "it runs whole layers, and this is a bare operator"
    return None
