"""The CPU kernels' library, which computes on torch's threads."""

from __future__ import annotations

import ctypes

import torch

from . import load
from .recipes import Cpu, NoLibrary
from .recipes.cpu import instruction_sets


class Loader(load.Loader):
    def check(self) -> None:
        parallel_for()

    def start(self, library: ctypes.CDLL) -> None:
        library.rnnkit_start.argtypes, library.rnnkit_start.restype = [ctypes.c_void_p], None
        library.rnnkit_start(parallel_for())


def library() -> load.Found:
    """The library, started, or None and the reason why there is none."""
    return load.once("CPU", lambda: Loader(Cpu(instruction_sets())).search())


def parallel_for() -> int:
    """The address of torch_parallel_for: with it the library shares torch's threads."""
    try:
        # This looks through all that torch._C is linked with, libtorch_cpu among it.
        function = ctypes.CDLL(torch._C.__file__).torch_parallel_for
    except (AttributeError, OSError) as error:
        raise NoLibrary(f"torch {torch.__version__} lacks what it needs: {error}") from None
    return ctypes.cast(function, ctypes.c_void_p).value or 0
