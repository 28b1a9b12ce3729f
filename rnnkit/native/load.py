"""Finds a library, or builds it once, when it is first asked for.

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
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import cache
from .recipes import Failure, NoLibrary, Recipe, check_allowed

PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel, and in a checkout.
SOURCES = (PACKAGE / "csrc", PACKAGE.parent / "csrc")

Attempt = ctypes.CDLL | None
Found = tuple[Attempt, str | None]

_lock = threading.Lock()
_found: dict[str, Found] = {}


def once(name: str, search: Callable[[], Found]) -> Found:
    """What the first search for a library of that name found."""
    if name not in _found:
        with _lock:
            if name not in _found:
                _found[name] = search()
    return _found[name]


def renew_lock() -> None:
    """In a forked child the thread that may have held the lock does not exist."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_lock)


class Loader:
    """The places of one recipe's library, each of which has it, has it not, or says why not."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.csrc = next((folder for folder in SOURCES if recipe.sources(folder)), None)
        self.source = None if self.csrc is None else recipe.source_hash(self.csrc)
        self.reasons: list[str] = []

    def check(self) -> None:
        """Raises where no library could be started."""

    def start(self, library: ctypes.CDLL) -> None:
        """Gives a library what it needs."""

    def search(self, compile: bool = True) -> Found:
        """The first library that can be used: the package's, the cache's, a new one or any left.

        Warns of what the user should know: a library that cannot be used, a compiler that failed.
        """
        new = self.compiled if compile else self.promised
        for where in (self.packaged, self.cached, new, self.left):
            if found := self.attempt(where):
                return found, None
        return None, f"its library is not there: {'; '.join(dict.fromkeys(self.reasons))}"

    def attempt(self, where: Callable[..., Attempt], *arguments: Any) -> Attempt:
        """What is found there; or the reason is noted."""
        try:
            return where(*arguments)
        except (NoLibrary, OSError) as error:
            reason = str(error)
            if isinstance(error, Failure) and reason not in self.reasons:
                about = f"rnnkit's {self.recipe.kernels} kernels: {reason}"
                warnings.warn(about, RuntimeWarning, stacklevel=6)
            self.reasons.append(reason)
            return None

    def packaged(self) -> Attempt:
        return self.started(PACKAGE / "native" / self.recipe.library)

    def cached(self) -> Attempt:
        """For the processors that it would be compiled for; by any compiler: it takes minutes to
        compile the same again.
        """
        return self.first(self.recipe.processors)

    def left(self) -> Attempt:
        """Any that can be used: where none can be compiled, nobody may know what would be."""
        return self.first()

    def first(self, processors: Sequence[str] = ()) -> Attempt:
        if self.source is None:
            return None
        paths = cache.libraries(self.recipe, self.source, processors)
        return next(filter(None, (self.attempt(self.started, path) for path in paths)), None)

    def compilable(self) -> tuple[Path, Path]:
        """Where it would be compiled to and of what; or raises with the reason why not."""
        if self.csrc is None or self.source is None:
            raise NoLibrary("the package has neither it nor its sources")
        check_allowed()
        path = cache.place(self.recipe, self.source)
        cache.check_not_refused(path)
        self.check()
        return path, self.csrc

    def compiled(self) -> Attempt:
        path, csrc = self.compilable()
        with cache.locked(path.parent):
            # Another process may have built it meanwhile; or it cannot be started here, where a new
            # one could not either, and other machines may use it.
            if not self.whole(path):
                cache.fill(path, csrc, self.recipe)
            return self.started(path)

    def whole(self, path: Path) -> bool:
        """Whether a file is what would be compiled, as far as can be told without loading it."""
        with suppress(NoLibrary, OSError):
            refuse_part(path)
            return str(self.source).encode() in path.read_bytes()
        return False

    def promised(self) -> None:
        self.compilable()
        raise NoLibrary(f"it is compiled when it is first used ({self.recipe.duration})")

    def started(self, path: Path) -> Attempt:
        """Loads and starts a library, if the file is there and this machine can use it."""
        if not path.exists():
            return None
        library = opened(path)
        try:
            reason = self.recipe.why_not(self.processors(library))
            if reason is None:
                self.start(library)
                return library
        except (NoLibrary, AttributeError) as error:
            close(library)
            raise Failure(f"{path} cannot be used: {error}") from None
        close(library)
        raise NoLibrary(f"{path} cannot be used: {reason}")

    def processors(self, library: ctypes.CDLL) -> list[str]:
        """What a library was compiled for; raises if it was of other sources than those here."""
        library.rnnkit_source.restype = ctypes.c_char_p
        built_from, *processors = library.rnnkit_source().decode().split()
        if self.source not in (None, built_from):
            wanted = str(self.source)[:16]
            raise NoLibrary(f"it was built from other sources ({built_from[:16]}, not {wanted})")
        return processors


def opened(path: Path) -> ctypes.CDLL:
    try:
        refuse_part(path)
        return ctypes.CDLL(str(path))
    except (NoLibrary, OSError) as error:
        raise Failure(f"{path} cannot be loaded: {error}") from None


def close(library: ctypes.CDLL) -> None:
    """While it is open, a file that is built in its place would not be read."""
    _ctypes.dlclose(library._handle)


def refuse_part(path: Path) -> None:
    """Raises for an ELF file without its end, such as a copy to a full disk: loading it crashes."""
    with open(path, "rb") as file:
        header = file.read(64)
    if len(header) == 64 and header.startswith(b"\x7fELF\2\1"):  # 64 bits, little-endian
        (sections,) = struct.unpack_from("<Q", header, 40)
        size, count = struct.unpack_from("<HH", header, 58)
        if path.stat().st_size < sections + size * count:
            raise NoLibrary("its end is missing")
