"""The functions of the native library, and its kernels for each cell."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch

from .. import native
from ..cells import find
from ..native.arguments import STORAGE, Arguments, Block

# Of the instruction sets that the library can choose, the fastest first, the one in use.
instruction_set = 0


@lru_cache
def functions() -> tuple[ctypes.CDLL | None, str | None]:
    """The library with the types of its functions, or None and the reason."""
    library, reason = native.library()
    if library is None:
        return None, reason
    size = library.rnnkit_arguments_size
    size.restype = ctypes.c_int64
    if size() != 8 * len(Arguments._fields):
        return None, f"its library takes {size()} bytes of arguments, not {ctypes.sizeof(Block)}"
    library.rnnkit_kernels.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64]
    library.rnnkit_kernels.restype = ctypes.c_void_p
    library.rnnkit_instruction_set.argtypes = [ctypes.c_int64]
    library.rnnkit_instruction_set.restype = ctypes.c_char_p
    library.rnnkit_shared.argtypes = [ctypes.c_void_p]
    library.rnnkit_shared.restype = ctypes.c_int64
    for function in (library.rnnkit_scan, library.rnnkit_scan_backward, library.rnnkit_step):
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function.restype = None
    return library, None


def instruction_sets() -> list[str]:
    """Those that the library has and this processor runs, the fastest first."""
    library, _ = functions()
    names: list[str] = []
    while library is not None and (name := library.rnnkit_instruction_set(len(names))):
        names.append(name.decode())
    return names


def why_no_kernels(cell: str, dtype: torch.dtype) -> str | None:
    """Why the library has no kernels for a cell; None if it has."""
    library, reason = functions()
    if library is None:
        return reason
    if dtype not in STORAGE:
        return f"it has no kernels for dtype {dtype}"
    if kernels(cell, dtype, instruction_set) is None:
        return f"cell {cell!r} has no C++ equations"
    return None


@lru_cache(None)
def kernels(cell: str, dtype: torch.dtype, instruction_set: int) -> int | None:
    """The address of a cell's kernels, if there are any."""
    library, _ = functions()
    assert library is not None
    name = (find(cell).kernel or cell).encode()
    found: int | None = library.rnnkit_kernels(name, STORAGE[dtype], instruction_set)
    return found


@lru_cache(None)
def shared(cell: str, dtype: torch.dtype) -> int:
    """The first gates of a cell of which dr = dx."""
    library, _ = functions()
    assert library is not None
    return int(library.rnnkit_shared(kernels(cell, dtype, instruction_set)))


def call(function: str, cell: str, dtype: torch.dtype, block: Any) -> None:
    """Runs a function of the library, with a Block, on as many threads as torch uses."""
    library, _ = functions()
    chosen = kernels(cell, dtype, instruction_set)
    getattr(library, function)(chosen, block, torch.get_num_threads())


@lru_cache
def step_function() -> Any:
    """rnnkit_step for those to whom every microsecond counts: it takes ctypes' own types only."""
    library, _ = functions()
    assert library is not None
    function = library["rnnkit_step"]  # a new object, without the types of arguments
    function.restype = None
    return function
