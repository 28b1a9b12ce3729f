"""Finds the CPU kernels' library, or builds it once, when it is first asked for.

It is looked for in the package, where a wheel has it, and in the cache, where a first use built it.
A library says which sources it was built from: none runs with Python code of another time.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
import struct
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import torch

from . import build, cache
from .build import Failure, NoLibrary

__all__ = ["library", "parallel_for"]

PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel, and in a checkout.
SOURCES = (PACKAGE / "csrc", PACKAGE.parent / "csrc")

Found = tuple[ctypes.CDLL | None, str | None]

_lock = threading.Lock()
_found: Found | None = None


def library() -> Found:
    """The library, started, or None and the reason why there is none."""
    global _found
    if _found is None:
        with _lock:
            _found = _found or search()
    return _found


def renew_lock() -> None:
    """In a forked child the thread that may have held the lock does not exist."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_lock)


def search() -> Found:
    """The first library that can be used: the package's, the cache's or a new one.

    Warns of what the user should know: a library that cannot be used, a compiler that failed.
    """
    csrc = next((folder for folder in SOURCES if build.sources(folder)), None)
    source = None if csrc is None else build.source_hash(csrc)
    reasons = []
    for where in (packaged, cached, compiled):
        try:
            found = where(csrc, source)
        except Failure as error:
            warnings.warn(f"rnnkit's CPU kernels: {error}", RuntimeWarning, stacklevel=3)
            reasons.append(str(error))
        except (NoLibrary, OSError) as error:
            reasons.append(str(error))
        else:
            if found is not None:
                return found, None
    return None, f"its library is not there: {'; '.join(reasons)}"


def packaged(csrc: Path | None, source: str | None) -> ctypes.CDLL | None:
    return started(PACKAGE / "native" / build.LIBRARY, source)


def cached(csrc: Path | None, source: str | None) -> ctypes.CDLL | None:
    return None if source is None else started(cache.place(source), source)


def compiled(csrc: Path | None, source: str | None) -> ctypes.CDLL | None:
    if csrc is None or source is None:
        raise NoLibrary("the package has neither it nor its sources")
    compiler = build.find_compiler()
    parallel_for()
    path = cache.place(source)
    with cache.locked(path.parent):
        with suppress(Failure):
            if found := started(path, source):
                return found  # another process has built it meanwhile
        with cache.remembering(path, compiler):
            cache.fill(path, csrc, compiler)
            return started(path, source)


def started(path: Path, source: str | None) -> ctypes.CDLL | None:
    """Loads and starts a library, if the file is there; `source` is what it must say, if known."""
    if not path.exists():
        return None
    try:
        refuse_part(path)
        found = ctypes.CDLL(str(path))
    except (NoLibrary, OSError) as error:
        raise Failure(f"{path} cannot be loaded: {error}") from None
    try:
        found.rnnkit_source.restype = ctypes.c_char_p
        built_from = found.rnnkit_source().decode()
        if source not in (None, built_from):
            raise NoLibrary(
                f"it was built from other sources ({built_from[:16]}, not {source[:16]})"
            )
        found.rnnkit_start.argtypes, found.rnnkit_start.restype = [ctypes.c_void_p], None
        found.rnnkit_start(parallel_for())
    except (NoLibrary, AttributeError) as error:
        # While it is open, a file that is built in its place would not be read.
        _ctypes.dlclose(found._handle)
        raise Failure(f"{path} cannot be used: {error}") from None
    return found


def refuse_part(path: Path) -> None:
    """Raises for an ELF file without its end, such as a copy to a full disk: loading it crashes."""
    with open(path, "rb") as file:
        header = file.read(64)
    if len(header) == 64 and header.startswith(b"\x7fELF\2\1"):  # 64 bits, little-endian
        (sections,) = struct.unpack_from("<Q", header, 40)
        size, count = struct.unpack_from("<HH", header, 58)
        if path.stat().st_size < sections + size * count:
            raise NoLibrary("its end is missing")


def parallel_for() -> int:
    """The address of torch_parallel_for: with it the library shares torch's threads."""
    try:
        # This looks through all that torch._C is linked with, libtorch_cpu among it.
        function = ctypes.CDLL(torch._C.__file__).torch_parallel_for
    except (AttributeError, OSError) as error:
        raise NoLibrary(f"torch {torch.__version__} lacks what it needs: {error}") from None
    return ctypes.cast(function, ctypes.c_void_p).value or 0
