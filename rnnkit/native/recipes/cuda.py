"""The CUDA kernels' library. It knows nothing of torch, and has CUDA's runtime in it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from .compiler import Compiler, NoLibrary, first_working
from .recipe import Recipe

# The kinds of product: kernels.cu is compiled for each; and those of cuBLAS.
KINDS = ("half", "bfloat16", "tf32", "ieee")
STEPWISE_KINDS = (*KINDS, "double")

# After $CUDA_HOME and $CUDA_PATH.
USUAL_COMPILERS = ("nvcc", "/usr/local/cuda/bin/nvcc")

Capability = tuple[int, int]
# What the kernels need; and whom a wheel is for, if nobody says.
OLDEST: Capability = (8, 0)
USUAL: tuple[Capability, ...] = ((8, 0), (9, 0), (10, 0))


class Architecture(NamedTuple):
    """What nvcc compiles for; with ptx, newer GPUs run it too, whose driver compiles it anew."""

    major: int
    minor: int
    ptx: bool = False

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{'+PTX' if self.ptx else ''}"

    @property
    def options(self) -> list[str]:
        number = f"{self.major}{self.minor}"
        codes = [f"sm_{number}", f"compute_{number}"][: 1 + self.ptx]
        return [f"-gencode=arch=compute_{number},code={code}" for code in codes]

    def runs_on(self, card: Capability) -> bool:
        newer = card >= self[:2]
        return newer and (self.ptx or card[0] == self.major)


def parsed(word: str) -> Architecture:
    """One of TORCH_CUDA_ARCH_LIST. What 9.0a has beyond 9.0, no kernel here uses."""
    found = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", word)
    if found is None:
        raise NoLibrary(f"TORCH_CUDA_ARCH_LIST has {word!r}: expected numbers such as 8.0;9.0+PTX")
    major, minor, ptx = found.groups()
    return Architecture(int(major), int(minor), bool(ptx))


def listed(text: str) -> list[Architecture]:
    """Those of a list such as TORCH_CUDA_ARCH_LIST that have what the kernels need."""
    found = sorted({parsed(word) for word in re.split(r"[;\s]+", text) if word})
    usable = [each for each in found if each[:2] >= OLDEST]
    if found and not usable:
        raise NoLibrary(f"TORCH_CUDA_ARCH_LIST={text} has none from {Architecture(*OLDEST)} on")
    return usable


def nearest(card: Capability, known: Sequence[Capability]) -> Architecture:
    """What suits a GPU, of what the compiler knows: it may be older than the GPU."""
    older = [each for each in known if each <= card]
    if not older or card in older:
        return Architecture(*card)
    return Architecture(*max(older), ptx=True)


class Cuda(Recipe):
    """For GPUs of one compute capability; without it, for those listed or the usual ones."""

    kernels, library, folder, suffix = "CUDA", "librnnkit_cuda.so", "cuda", ".cu"
    flags = ("-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden")
    link_flags = ("-shared", "-cudart=static")

    def __init__(self, card: Capability | None = None) -> None:
        self.card = card

    @cached_property
    def compiler(self) -> Compiler:
        homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
        names = [shlex.quote(str(Path(home, "bin", "nvcc"))) for home in homes if home]
        names += USUAL_COMPILERS
        if found := first_working(names):
            return found
        raise NoLibrary(f"there is no working CUDA compiler (tried: {', '.join(names)})")

    def known(self) -> list[Capability]:
        """The capabilities that the compiler knows, of those that the kernels can have."""
        command = [*self.compiler.command, "--list-gpu-arch"]
        said = subprocess.run(command, capture_output=True, text=True).stdout
        found = [(int(a), int(b)) for a, b in re.findall(r"compute_(\d+)(\d)\b", said)]
        return sorted(each for each in found if each >= OLDEST)

    @cached_property
    def architectures(self) -> list[Architecture]:
        """$TORCH_CUDA_ARCH_LIST, or what suits the GPU; of a list, what suits it best: each takes
        minutes, and some images list all that there are.
        """
        text = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
        if found := listed(text):
            if reason := self.why_not([str(each) for each in found]):
                raise NoLibrary(f"TORCH_CUDA_ARCH_LIST={text}: {reason}")
            return [max(self.usable(found))] if self.card else found
        known = self.known()
        if self.card:
            return [nearest(self.card, known)]
        *others, last = [card for card in USUAL if card in known] or USUAL
        return [*(Architecture(*card) for card in others), Architecture(*last, ptx=True)]

    @property
    def processors(self) -> tuple[str, ...]:
        return tuple(map(str, self.architectures))

    @property
    def duration(self) -> str:
        count = len(self.architectures)
        return f"up to {5 * count} minutes"

    def units(self) -> list[tuple[str, list[str]]]:
        codes = [code for each in self.architectures for code in each.options]
        codes = list(dict.fromkeys(codes))
        longest_first = reversed(KINDS)
        kernels = [("kernels", [*codes, f"-DRNNKIT_KIND={kind}"]) for kind in longest_first]
        return [*kernels, ("stepwise", codes), ("library", codes)]

    def why_not(self, processors: Sequence[str]) -> str | None:
        if self.card is None or self.usable(map(parsed, processors)):
            return None
        return f"it is for {', '.join(processors)}, not for {Architecture(*self.card)}"

    def usable(self, found: Iterable[Architecture]) -> list[Architecture]:
        """Those that the GPU runs."""
        return [each for each in found if self.card and each.runs_on(self.card)]
