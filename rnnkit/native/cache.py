"""Libraries that were built on first use: one for each version of the sources and kind of machine.

Several processes may ask at the same time: one compiles, the others wait. A failure is remembered,
so that not every process tries again.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from . import build


def instruction_sets() -> tuple[str, ...]:
    """The baseline and the best that this CPU has; all, where the kernel does not say."""
    try:
        with open("/proc/cpuinfo") as file:
            words = next(line for line in file if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return tuple(build.INSTRUCTION_SETS)
    usable = [
        name
        for name, flags in build.INSTRUCTION_SETS.items()
        if all(flag.removeprefix("-m") in words for flag in flags)
    ]
    return tuple(dict.fromkeys(("baseline", usable[-1])))


def place(source: str) -> Path:
    """Where the library of these sources is, apart from those of other machines with this home."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:
        raise build.NoLibrary(f"there is no folder for it: {error}") from None
    libc = "".join(platform.libc_ver())
    kind = (source[:16], sys.platform, platform.machine(), libc, instruction_sets()[-1])
    return root / "rnnkit" / "-".join(filter(None, kind)) / build.LIBRARY


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out, where the file system knows locks."""
    import fcntl  # Windows lacks it

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing is not enough: a forked child has the file open, too.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def remembering(path: Path, compiler: build.Compiler) -> Iterator[None]:
    """Lets a compiler try once: what it failed by is raised again, without another try."""
    note = path.with_name("failure.txt")
    who, _, what = note.read_text().partition("\n") if note.exists() else ("", "", "")
    if who == repr(compiler):
        raise build.NoLibrary(f"{what} (from {note}: without this file it is tried again)")
    try:
        yield
    except build.Failure as error:
        note.write_text(f"{compiler!r}\n{error}")
        path.unlink(missing_ok=True)
        raise
    note.unlink(missing_ok=True)


def fill(path: Path, csrc: Path, compiler: build.Compiler) -> None:
    """Builds the library and says so, since the user waits."""
    say = partial(print, file=sys.stderr, flush=True)
    say("rnnkit: compiling its CPU kernels, once (about a minute) ...")
    start = time.monotonic()
    build.build(path, csrc, compiler, instruction_sets())
    say(f"rnnkit: compiled in {time.monotonic() - start:.0f} s")
