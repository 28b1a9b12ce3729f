"""The CPU kernels' library: `build` compiles it, `load` finds it."""

from .load import library, parallel_for

__all__ = ["library", "parallel_for"]
