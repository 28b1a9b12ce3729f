"""What the making of all libraries has in common."""

from __future__ import annotations

import hashlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ClassVar

from .compiler import Compiler, NoLibrary, run


class Recipe(ABC):
    """How one library is made: of which sources, by which compiler, for which processors.

    kernels: what it holds, in messages; library: its file's name; folder, suffix: its sources' in
    csrc/, of which library.* tells what it was built from.
    """

    kernels: ClassVar[str]
    library: ClassVar[str]
    folder: ClassVar[str]
    suffix: ClassVar[str]
    flags: ClassVar[tuple[str, ...]]
    link_flags: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def compiler(self) -> Compiler:
        """Or raises with the reason why there is none."""

    @property
    @abstractmethod
    def processors(self) -> tuple[str, ...]:
        """What it is compiled for; or raises with the reason why that cannot be."""

    @property
    @abstractmethod
    def duration(self) -> str:
        """How long it takes, in words."""

    @abstractmethod
    def units(self) -> list[tuple[str, list[str]]]:
        """The names of the sources, without suffix, and the options by which each is compiled."""

    def why_not(self, processors: Sequence[str]) -> str | None:
        """Why a library for those processors is of no use here; None if it is."""
        return None

    @classmethod
    def sources(cls, csrc: Path) -> list[Path]:
        """All that goes into the library; none where its own are missing."""
        own = list((csrc / cls.folder).glob(f"*{cls.suffix}"))
        patterns = ("*.h", "cells/*.h", f"{cls.folder}/*.h") if own else ()
        return sorted([*own, *(path for pattern in patterns for path in csrc.glob(pattern))])

    @classmethod
    def source_hash(cls, csrc: Path) -> str:
        """Names a library by its sources and by this package, which has the flags."""
        digest = hashlib.sha256()
        paths = [(path.name, path) for path in sorted(Path(__file__).parent.glob("*.py"))]
        paths += [(path.relative_to(csrc).as_posix(), path) for path in cls.sources(csrc)]
        for name, path in paths:
            content = path.read_bytes()
            digest.update(f"\n{name} {len(content)}\n".encode())
            digest.update(content)
        return digest.hexdigest()

    def commands(self, csrc: Path, folder: Path) -> tuple[list[list[str]], list[str]]:
        """The commands that compile into the folder, in any order, and the one that links."""
        made_of = " ".join((self.source_hash(csrc), *self.processors))
        common = [*self.flags, f'-DRNNKIT_SOURCE="{made_of}"', f"-I{csrc}"]
        compiles, objects = [], []
        for number, (unit, options) in enumerate(self.units()):
            objects.append(str(folder / f"{number}.o"))
            source = str(csrc / self.folder / f"{unit}{self.suffix}")
            options = [*common, *options, "-c", source, "-o", objects[-1]]
            compiles.append([*self.compiler.command, *options])
        link = [*self.link_flags, *objects, "-lm", "-o", str(folder / self.library)]
        return compiles, [*self.compiler.command, *link]

    def build(self, target: Path, csrc: Path) -> None:
        """Compiles the library on all cores. The target appears whole or not at all."""
        if not self.sources(csrc):
            raise NoLibrary(f"there are no sources in {csrc}")
        before = self.source_hash(csrc)
        with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as name:
            folder = Path(name)
            compiles, link = self.commands(csrc, folder)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                # The first error cancels what has not started.
                list(pool.map(partial(run, csrc=csrc), compiles))
            run(link, csrc)
            if self.source_hash(csrc) != before:
                raise NoLibrary(f"{csrc} changed while it was compiled")
            with open(folder / self.library, "rb") as file:
                os.fsync(file.fileno())  # or a power cut could leave the name without the content
            os.replace(folder / self.library, target)
