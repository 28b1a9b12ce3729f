"""The CPU kernels' library."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from functools import cached_property

from .compiler import Compiler, NoLibrary, first_working
from .recipe import Recipe

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


def instruction_sets() -> tuple[str, ...]:
    """The baseline and the best that this CPU has; all, where the kernel does not say."""
    try:
        with open("/proc/cpuinfo") as file:
            words = next(line for line in file if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return tuple(INSTRUCTION_SETS)
    usable = [
        name
        for name, flags in INSTRUCTION_SETS.items()
        if all(flag.removeprefix("-m") in words for flag in flags)
    ]
    return tuple(dict.fromkeys(("baseline", usable[-1])))


def find_compiler() -> Compiler:
    """$CXX, or the first of the usual names that runs; or raises with the reason."""
    asked = os.environ.get("CXX", "").strip()
    names = [asked] if asked else ["c++", "g++", "clang++"]
    if found := first_working(names):
        return found
    origin = "$CXX" if asked else "tried"
    raise NoLibrary(f"there is no working C++ compiler ({origin}: {', '.join(names)})")


class Cpu(Recipe):
    """For some instruction sets, by default all."""

    kernels, library, folder, suffix = "CPU", LIBRARY, "cpu", ".cpp"
    flags, link_flags = FLAGS, LINK_FLAGS

    def __init__(self, instruction_sets: Sequence[str] = tuple(INSTRUCTION_SETS)) -> None:
        self.instruction_sets = tuple(instruction_sets)

    @cached_property
    def compiler(self) -> Compiler:
        return find_compiler()

    @property
    def processors(self) -> tuple[str, ...]:
        return self.instruction_sets

    @property
    def duration(self) -> str:
        return "about a minute"

    def units(self) -> list[tuple[str, list[str]]]:
        has = [f"-DRNNKIT_HAS_{name.upper()}" for name in self.instruction_sets]
        kernels = [
            [*INSTRUCTION_SETS[name], f"-DRNNKIT_ISA={name}", f"-DRNNKIT_STORAGE={storage}"]
            for name in self.instruction_sets
            for storage in STORAGE
        ]
        return [("library", has), *(("kernels", options) for options in kernels)]

    def why_not(self, processors: Sequence[str]) -> str | None:
        best = self.instruction_sets[-1]
        return None if best in processors else f"it is for {', '.join(processors)}, not for {best}"
