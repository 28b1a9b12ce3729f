"""The functions of the CUDA library."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

from ..native.arguments import Arguments
from .arguments import Form
from .plan import KINDS

NAMES = ("rnnkit_columns", "rnnkit_pitch", "rnnkit_shared_bytes")


class Library:
    """A library that was built from csrc/cuda.

    device: of the tensors that its kernels take: "cuda", or "cpu" where they are emulated.
    """

    def __init__(self, path: str, device: str = "cuda") -> None:
        self.device, self.functions = device, ctypes.CDLL(path)
        for name in (*NAMES, "rnnkit_arguments_size", "rnnkit_form_size"):
            getattr(self.functions, name).restype = ctypes.c_int64
        for struct, size in (
            (Arguments, self.functions.rnnkit_arguments_size()),
            (Form, self.functions.rnnkit_form_size()),
        ):
            if size != 8 * len(struct._fields):
                raise OSError(f"{path} takes {size} bytes of {struct.__name__}")
        self.functions.rnnkit_persistent.restype = ctypes.c_void_p
        self.functions.rnnkit_error.restype = ctypes.c_char_p

    @lru_cache(None)  # noqa: B019
    def persistent(self, cell: str, kind: str, unit_tiles: int, backward: bool) -> Any:
        """A persistent kernel, None if there is no such."""
        words = (KINDS.index(kind), unit_tiles, int(backward))
        found = self.functions.rnnkit_persistent(cell.encode(), *map(ctypes.c_int64, words))
        return found and ctypes.c_void_p(found)

    def ask(self, name: str, kernel: Any, *sizes: int) -> int:
        """What a kernel says of itself: "columns", "pitch" (H) or "shared_bytes" (H, chunks)."""
        return int(getattr(self.functions, f"rnnkit_{name}")(kernel, *map(ctypes.c_int64, sizes)))

    def launch(self, kernel: Any, arguments: Any, form: Any) -> None:
        code = self.functions.rnnkit_launch(kernel, arguments, form)
        if code != 0:
            said = self.functions.rnnkit_error(code).decode()
            raise RuntimeError(f"rnnkit's CUDA kernels: {said}")


_installed: Library | None = None


def install(library: Library | None) -> None:
    """Takes a library for the one in use; None for none."""
    global _installed
    _installed = library


def find() -> tuple[Library | None, str | None]:
    """The library in use, or None and the reason."""
    return (_installed, None) if _installed else (None, "its library is not built")
