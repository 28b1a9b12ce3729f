"""Compiles csrc/ to one shared library with a C interface, for every torch.

Standard library only: setup.py runs this file where neither torch nor rnnkit can be imported. The
commands are a dozen that never change one by one, so there is nothing for a build system to do.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

LIBRARY = "librnnkit.dylib" if sys.platform == "darwin" else "librnnkit.so"

# What kernels.cpp is compiled for, slowest first, by the compiler's flags, which are the kernel's
# words too (-mfma is fma in /proc/cpuinfo). The library chooses among them when it is loaded.
INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {"baseline": ()}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ("-mavx2", "-mfma")
    INSTRUCTION_SETS["avx512"] = (
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        *INSTRUCTION_SETS["avx2"],
    )
STORAGE = ("float", "double", "bfloat16")

# None of them lets the compiler assume that there is no NaN or infinity. A product may be joined
# with a sum, and arithmetic neither traps nor sets errno, which nothing here would look at.
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
LINK_FLAGS = ("-dynamiclib" if sys.platform == "darwin" else "-shared", "-pthread")


class NoLibrary(Exception):
    """Why there is no library."""


class Failure(NoLibrary):
    """What went wrong, and would again: the user should know."""


class Compiler(NamedTuple):
    """How to call it, and what it says it is."""

    command: tuple[str, ...]
    version: str


def find_compiler() -> Compiler:
    """$CXX, or the first of the usual names that runs; or raises with the reason."""
    if os.environ.get("RNNKIT_BUILD") == "0":
        raise NoLibrary("RNNKIT_BUILD=0 forbids compiling")
    if sys.platform == "win32":
        raise NoLibrary("they are not compiled on Windows: MSVC is not supported")
    asked = os.environ.get("CXX", "").strip()
    names = [asked] if asked else ["c++", "g++", "clang++"]
    for name in names:
        command = tuple(shlex.split(name))
        # Running it shows more than its presence: macOS has a c++ that tells how to install one.
        with suppress(OSError, subprocess.CalledProcessError):
            said = subprocess.check_output([*command, "--version"], stderr=subprocess.DEVNULL)
            return Compiler(command, said.decode(errors="replace").partition("\n")[0])
    origin = "$CXX" if asked else "tried"
    raise NoLibrary(f"there is no working C++ compiler ({origin}: {', '.join(names)})")


def sources(csrc: Path) -> list[Path]:
    """All that goes into the library."""
    patterns = ("*.h", "cells/*.h", "cpu/*.h", "cpu/*.cpp")
    return sorted(path for pattern in patterns for path in csrc.glob(pattern))


def source_hash(csrc: Path) -> str:
    """Names a library by its sources and by this file, which has the flags."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sources(csrc):
        content = path.read_bytes()
        digest.update(f"\n{path.relative_to(csrc).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def commands(
    compiler: Compiler, csrc: Path, instruction_sets: Sequence[str], folder: Path
) -> tuple[list[list[str]], list[str]]:
    """The commands that compile into the folder, in any order, and the one that links."""
    units = [("library", [f'-DRNNKIT_SOURCE="{source_hash(csrc)}"'])]
    units[0][1].extend(f"-DRNNKIT_HAS_{name.upper()}" for name in instruction_sets)
    for name in instruction_sets:
        for storage in STORAGE:
            defines = [f"-DRNNKIT_ISA={name}", f"-DRNNKIT_STORAGE={storage}"]
            units.append(("kernels", [*INSTRUCTION_SETS[name], *defines]))
    compiles, objects = [], []
    for number, (unit, options) in enumerate(units):
        objects.append(str(folder / f"{number}.o"))
        source = str(csrc / "cpu" / f"{unit}.cpp")
        options = [*FLAGS, *options, f"-I{csrc}", "-c", source, "-o", objects[-1]]
        compiles.append([*compiler.command, *options])
    link = [*compiler.command, *LINK_FLAGS, *objects, "-lm", "-o", str(folder / LIBRARY)]
    return compiles, link


def run(command: list[str]) -> None:
    """Runs the compiler; raises with the first of its errors."""
    # In English, so that errors are found by the word.
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        words = re.compile("error|undefined|multiple|duplicate")
        errors = [line for line in lines if words.search(line)] or lines
        said = "\n  ".join(errors[:3]) or f"exit status {done.returncode}"
        raise Failure(f"{command[0]} failed:\n  {said}")


def build(
    target: Path, csrc: Path, compiler: Compiler, instruction_sets: Sequence[str] | None = None
) -> None:
    """Compiles the library, by default for all instruction sets, on all cores.

    The target appears whole or not at all.
    """
    if not sources(csrc):
        raise NoLibrary(f"there are no sources in {csrc}")
    before = source_hash(csrc)
    with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as name:
        folder = Path(name)
        chosen = instruction_sets or tuple(INSTRUCTION_SETS)
        compiles, link = commands(compiler, csrc, chosen, folder)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, compiles))  # the first error cancels what has not started
        run(link)
        if source_hash(csrc) != before:
            raise NoLibrary(f"{csrc} changed while it was compiled")
        with open(folder / LIBRARY, "rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the name without the content
        os.replace(folder / LIBRARY, target)
