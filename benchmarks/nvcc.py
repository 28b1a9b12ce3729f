"""NVIDIA's compiler: the kernels of csrc/cuda for a GPU that need not be here, with its figures."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from rnnkit.cuda.arguments import Form
from rnnkit.native.arguments import Arguments
from rnnkit.native.recipes import Cuda

from . import sass
from .facts import ROOT
from .static_targets import tool

SOURCE = ROOT / "csrc" / "cuda" / "kernels.cu"
CELLS = ROOT / "csrc" / "cells" / "cells.h"
# `Normed` of csrc/cuda/normed.h.
NORMED = ("NOTHING", "SUMS", "PRODUCTS")
# `Via` of csrc/cuda/exchange.h.
VIA = ("L2", "cluster", "block")
RECIPE = Cuda()
# What ptxas says of a kernel, and the part of it that each figure is in.
SAID = re.compile(r"Compiling entry function '(\w+)'(.+?)Compile time", re.DOTALL)
FIGURES = {
    "registers": r"Used (\d+) registers",
    "stack": r"(\d+) bytes stack frame",
    "stores": r"(\d+) bytes spill stores",
    "loads": r"(\d+) bytes spill loads",
    "shared": r"(\d+) bytes smem",
}


class Kernel(NamedTuple):
    """One kernel as it was compiled. cell: its name for the library; figures: the compiler's."""

    cell: str
    unit_tiles: int
    backward: bool
    via: str
    figures: dict[str, int]
    code: sass.Function

    def arguments_of(self, block: sass.Block) -> set[str]:
        """The arguments of the launch that a block looks at."""
        fields = (*Arguments._fields, *Form._fields)
        found = re.findall(r"c\[0x0\]\[(0x[0-9a-f]+)\]", "\n".join(block.code))
        places = [(int(place, 16) - self.code.parameters) // 8 for place in found]
        return {fields[k] for k in places if 0 <= k < len(fields)}


def targets() -> list[str]:
    """What it compiles for; raises NoLibrary where there is no compiler."""
    return [f"sm_{major}{minor}" for major, minor in RECIPE.known()]


def listed() -> dict[str, str]:
    """What csrc/cells/cells.h lists, by name."""
    found = re.findall(r'(CELL\("(\w+)".+\))', CELLS.read_text())
    return {name: line for line, name in found}


def only(cells: Collection[str], folder: str | Path) -> list[str]:
    """The options that have it list these only, by a file in a folder."""
    path = Path(folder, "only.h")
    lines = " ".join(listed()[name] for name in cells)
    path.write_text(f"#define RNNKIT_CELLS(CELL) {lines}\n")
    return ["-include", str(path)]


def compile_kernels(target: str, kind: str, cells: Collection[str]) -> list[Kernel]:
    """The kernels of some cells for one kind of product."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder, "kernels.cubin"))
        options = ["-cubin", f"-arch={target}", f"-DRNNKIT_KIND={kind}", "-Xptxas=-v"]
        options += only(cells, folder)
        command = [*RECIPE.compiler.command, *RECIPE.flags, *options, str(SOURCE), "-o", cubin]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        code = subprocess.check_output([tool("nvdisasm"), cubin], text=True)
    return sorted(kernels(done.stderr, sass.functions(code)), key=lambda kernel: kernel[:4])


def kernels(said: str, functions: dict[str, sass.Function]) -> Iterator[Kernel]:
    """What the compiler said of each kernel, with its code."""
    figures = {name: figures_of(text) for name, text in SAID.findall(said)}
    names = subprocess.check_output(["c++filt", *figures], text=True).splitlines()
    for (mangled, found), name in zip(figures.items(), names, strict=True):
        yield Kernel(*described(name), found, functions[mangled])


def figures_of(text: str) -> dict[str, int]:
    """The figures, zero where it says nothing."""
    found = {name: re.search(pattern, text) for name, pattern in FIGURES.items()}
    return {name: int(each[1]) if each else 0 for name, each in found.items()}


def described(name: str) -> tuple[str, int, bool, str]:
    """What persistent<Kind, Cell, UNIT_TILES, BACKWARD, VIA> says of all but the kind."""
    pattern = r"persistent<.+?, (With<.+>), (\d+), (true|false), \(Via\)(\d)>\("
    found = re.search(pattern, plain(name))
    assert found, name
    return registered(found[1]), int(found[2]), found[3] == "true", VIA[int(found[4])]


def plain(name: str) -> str:
    """A type as the source has it, where M is the kind's functions."""
    return re.sub(r"GpuMath<\w+>", "M", name.replace("rnnkit::", "").replace(" >", ">"))


def registered(cell: str) -> str:
    """The name under which CELLS lists With<type, what is normalised>."""
    found = re.fullmatch(r"With<(.+)>, \(Normed\)(\d)>", cell)
    assert found, cell
    listed = re.findall(r'CELL\("(\w+)", (\w+), (.+)>\)', CELLS.read_text())
    # The type may leave out its last arguments.
    matching = [
        (kind, name)
        for name, norm, kind in listed
        if found[1].startswith(kind) and NORMED.index(norm) == int(found[2])
    ]
    assert matching, f"{CELLS} lists no {cell}"
    return max(matching, key=lambda each: len(each[0]))[1]
