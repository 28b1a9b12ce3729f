"""Libraries of kernels in C++ and CUDA: `recipes` say how they are compiled, `load` finds them."""

from .cpu import library, parallel_for

__all__ = ["library", "parallel_for"]
