"""Libraries that were built on first use: one for each version of the sources, kind of machine and
compiler.

Several processes may ask at the same time: one compiles, the others wait. What a compiler refuses
is remembered, so that not every process tries again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .recipes import Failure, NoLibrary, Recipe, Refusal


def home(source: str) -> Path:
    """Where libraries of these sources are, apart from those of other machines with this home."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:
        raise NoLibrary(f"there is no folder for it: {error}") from None
    libc = "".join(platform.libc_ver())
    kind = (source[:16], sys.platform, platform.machine(), libc)
    return root / "rnnkit" / "-".join(filter(None, kind))


def place(recipe: Recipe, source: str) -> Path:
    """Where this compiler's library is, whose failures say nothing of others'."""
    compiler = hashlib.sha256(repr(recipe.compiler).encode()).hexdigest()[:8]
    return home(source) / "-".join((*recipe.processors, compiler)) / recipe.library


def libraries(recipe: Recipe, source: str, processors: Sequence[str] = ()) -> list[Path]:
    """Those of all compilers, for these processors or for any; the newest first, since it was
    compiled where none of the others was of use.
    """
    folders = "-".join((*processors, "*"))
    found = home(source).glob(f"{folders}/{recipe.library}")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out, where the file system knows locks."""
    import fcntl  # Windows lacks it

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        with suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"rnnkit: waiting for another process that compiles in {folder} ...")
                fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing is not enough: a forked child has the file open, too.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def check_not_refused(path: Path) -> None:
    """Raises anew what the compiler of that library refused."""
    note = refusal(path)
    if note.exists():
        raise Failure(f"{note.read_text()} (from {note}: without this file it is tried again)")


def refusal(path: Path) -> Path:
    return path.with_name("failure.txt")


def fill(path: Path, csrc: Path, recipe: Recipe) -> None:
    """Builds the library, if the compiler has not refused to, and says so."""
    check_not_refused(path)
    say(f"rnnkit: compiling its {recipe.kernels} kernels, once ({recipe.duration}) ...")
    start = time.monotonic()
    try:
        recipe.build(path, csrc)
    except Refusal as error:
        refusal(path).write_text(str(error))
        raise
    say(f"rnnkit: compiled in {time.monotonic() - start:.0f} s")


def say(what: str) -> None:
    """To the user, who waits."""
    print(what, file=sys.stderr, flush=True)
