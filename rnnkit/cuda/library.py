"""The CUDA library: its functions, and where it comes from."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile
from typing import Any

import torch

from .. import cells
from ..native import load
from ..native.arguments import Arguments
from ..native.recipes import Cuda, Failure, NoLibrary
from ..native.recipes.cuda import KINDS, OLDEST, Capability
from .arguments import Form
from .plan import FORMS

NAMES = ("columns", "pitch", "shared_bytes", "clusters", "arguments_size", "form_size")


class Library:
    """A library that was built from csrc/cuda.

    device: of the tensors that its kernels take: "cuda", or "cpu" where they are emulated.
    """

    def __init__(self, path: str, device: str = "cuda") -> None:
        self.device, self.functions = device, ctypes.CDLL(path)
        for name in NAMES:
            getattr(self.functions, f"rnnkit_{name}").restype = ctypes.c_int64
        for struct, size in (
            (Arguments, self.functions.rnnkit_arguments_size()),
            (Form, self.functions.rnnkit_form_size()),
        ):
            if size != 8 * len(struct._fields):
                raise OSError(f"{path} takes {size} bytes of {struct.__name__}")
        self.functions.rnnkit_persistent.restype = ctypes.c_void_p
        self.functions.rnnkit_error.restype = ctypes.c_char_p

    @lru_cache(None)  # noqa: B019
    def persistent(self, cell: str, kind: str, unit_tiles: int, backward: bool, via: str) -> Any:
        """A persistent kernel, None if there is no such."""
        # A block by itself multiplies in full precision, whatever is allowed.
        kind = "ieee" if (kind, via) == ("tf32", "block") else kind
        words = (KINDS.index(kind), FORMS.index((unit_tiles, via)), int(backward))
        found = self.functions.rnnkit_persistent(cell.encode(), *map(ctypes.c_int64, words))
        return found and ctypes.c_void_p(found)

    def ask(self, name: str, kernel: Any, *sizes: int) -> int:
        """What a kernel says of itself: "columns", "pitch" (H) or "shared_bytes" (H, chunks)."""
        return int(getattr(self.functions, f"rnnkit_{name}")(kernel, *map(ctypes.c_int64, sizes)))

    def clusters(self, shared_bytes: int) -> tuple[int, ...]:
        """How many clusters of 2, 3, ... blocks of so much shared memory the current GPU runs at
        once.
        """
        sizes = (map(ctypes.c_int64, (blocks, shared_bytes)) for blocks in range(2, 17))
        counts = (int(self.functions.rnnkit_clusters(*size)) for size in sizes)
        return tuple(takewhile(bool, counts))

    def launch(self, kernel: Any, arguments: Any, form: Any) -> None:
        code = self.functions.rnnkit_launch(kernel, arguments, form)
        if code != 0:
            said = self.functions.rnnkit_error(code).decode()
            raise RuntimeError(f"rnnkit's CUDA kernels: {said}")


def name_of(cell: str) -> str:
    """The name under which the kernels know a cell: that of the registered one that differs from it
    in eps at most, and in whether its norm is over all gates.
    """
    found = cells.find(cell)
    name = (found.kernel or cell) + "_norm" * (found.norm is not None and not found.normalises)
    return name if name in cells.CELLS and norms(cells.CELLS[name]) == norms(found) else cell


def norms(cell: cells.Cell) -> tuple[bool | None, bool]:
    """Whether a norm before the step is of sums, None if there is none; whether one is within."""
    return None if cell.norm is None else cell.norm.of_sum, cell.normalises


Found = tuple[Library | None, str | None]

_installed: Library | None = None


def install(library: Library | None) -> None:
    """Takes a library for the one in use; None for none."""
    global _installed
    _installed = library


def find(device: torch.device) -> Found:
    """The library for tensors on a device, built if need be, or None and the reason."""
    if _installed is not None:
        return _installed, None
    return for_gpu(device) if device.type == "cuda" else (None, "its kernels run on a GPU")


@lru_cache
def for_gpu(device: torch.device) -> Found:
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < OLDEST:
        oldest, this = (".".join(map(str, each)) for each in (OLDEST, capability))
        return None, f"its kernels need compute capability {oldest}, and {device} has {this}"
    library, reason = once(capability)
    return (None, reason) if library is None else (Library(library._name), None)


def look() -> str:
    """Where the libraries of all visible GPUs are, or why they are not there yet: this process
    compiles none.
    """
    cards = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    usable: Iterable[Capability | None] = {card for card in cards if card >= OLDEST} or (None,)
    found = [once(card, compile=False) for card in usable]
    said = [reason or str(library and library._name) for library, reason in found]
    return "; ".join(sorted(set(said)))


def driver() -> int | None:
    """The major version of CUDA up to which the driver runs libraries; None without a driver."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return version.value // 1000


class Loader(load.Loader):
    def check(self) -> None:
        release = re.search(r"release (\d+)", self.recipe.compiler.version)
        known = driver()
        if release and known and int(release[1]) > known:
            raise Failure(f"nvcc is of CUDA {release[1]}, the driver runs libraries up to {known}")

    def start(self, library: ctypes.CDLL) -> None:
        library.rnnkit_error.restype = ctypes.c_char_p
        code = library.rnnkit_ready()
        if code != 0:
            raise NoLibrary(library.rnnkit_error(code).decode())


def once(card: Capability | None, compile: bool = True) -> load.Found:
    """Each kind of GPU has its own library: what one lacks, such as a place in
    $TORCH_CUDA_ARCH_LIST, the others need not miss.
    """
    if torch.version.hip is not None:
        return None, "its kernels are in CUDA C++, and this torch is for ROCm"
    return load.once(f"CUDA {card}", lambda: Loader(Cuda(card)).search(compile))
