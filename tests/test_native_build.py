"""The library's compile commands, and the wheels that have it."""

import ctypes
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_library import compiles, works, write_sources

from rnnkit.native import load, recipes
from rnnkit.native.cpu import Loader
from rnnkit.native.recipes import Cpu
from rnnkit.native.recipes.cpu import INSTRUCTION_SETS, STORAGE, instruction_sets

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def csrc(tmp_path):
    """Sources of a tiny library."""
    write_sources(tmp_path / "csrc")
    return tmp_path / "csrc"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("RNNKIT_BUILD", "RNNKIT_CUDA", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)


@compiles
def test_sources_that_change_meanwhile_make_no_library(tmp_path, csrc, monkeypatch):
    hashes = iter(["before", "before", "after"])
    monkeypatch.setattr(Cpu, "source_hash", lambda self, csrc: next(hashes))
    before = os.listdir(tmp_path)
    with pytest.raises(recipes.NoLibrary, match="changed while"):
        Cpu(("baseline",)).build(tmp_path / Cpu.library, csrc)
    assert os.listdir(tmp_path) == before


@compiles
def test_the_linker_is_quoted(tmp_path, csrc):
    (csrc / "cpu" / "kernels.cpp").write_text("int defined_in_all = 1;")
    with pytest.raises(recipes.Failure, match="defined_in_all"):
        Cpu().build(tmp_path / Cpu.library, csrc)


@compiles
def test_every_kernel_is_in_it_and_keeps_nan_and_infinity(tmp_path, csrc):
    Cpu().build(tmp_path / Cpu.library, csrc)
    library = ctypes.CDLL(str(tmp_path / Cpu.library))
    x = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, -0.0, 1.0] * 7).double()
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    expected = [
        torch.where(x.isnan(), one, torch.where(x.isinf(), 2 * one, zero)),
        torch.where(x < 1, one, torch.where(x >= 1, 2 * one, 3 * one)),
        x - x,
        x.relu(),
    ]
    usable = {flag for name in instruction_sets() for flag in INSTRUCTION_SETS[name]}
    for name, flags in INSTRUCTION_SETS.items():
        for storage in STORAGE:
            special = library[f"special_{name}_{storage}"]
            if usable.issuperset(flags):
                y = x.new_zeros(len(x), 4)
                special(len(x), *(ctypes.c_void_p(each.data_ptr()) for each in (x, y)))
                assert torch.equal(y.nan_to_num(5), torch.stack(expected, 1).nan_to_num(5))


def test_commands(csrc, tmp_path, monkeypatch):
    sets = tuple(INSTRUCTION_SETS)
    monkeypatch.setattr(Cpu, "compiler", recipes.Compiler(("g++",), ""))
    compiles, link = Cpu().commands(csrc, tmp_path)
    library, *kernels = compiles
    assert len(kernels) == len(sets) * len(STORAGE)
    assert {f"-DRNNKIT_HAS_{name.upper()}" for name in sets} < set(library)
    assert f'-DRNNKIT_SOURCE="{" ".join((Cpu.source_hash(csrc), *sets))}"' in library
    assert not any("-mavx" in option for option in library)
    for command in (*compiles, link):
        assert not {"-march=native", "-ffast-math", "-Ofast"} & set(command)
    assert all(command[-1] in link for command in compiles)


def test_recipes_need_neither_torch_nor_rnnkit():
    code = "import sys, recipes; assert not {'torch', 'rnnkit', 'setuptools'} & set(sys.modules)"
    subprocess.check_call([sys.executable, "-S", "-c", code], cwd=Path(recipes.__file__).parents[1])


def copy_of_checkout(target, csrc):
    """What a build of the package reads, with other sources."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.dylib")
    shutil.copytree(ROOT / "rnnkit", target / "rnnkit", ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    shutil.copytree(csrc, target / "csrc")


def wheel(checkout, out):
    """The wheel that pip builds, offline."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", str(out)]
    subprocess.check_call([sys.executable, "-m", "pip", "wheel", str(checkout), *options])
    (built,) = out.iterdir()
    return built


@compiles
def test_a_wheel_has_the_library_if_there_is_a_compiler(tmp_path, csrc, monkeypatch):
    pytest.importorskip("setuptools", "77")
    checkout = tmp_path / "checkout"
    copy_of_checkout(checkout, csrc)
    built = wheel(checkout, tmp_path / "first")
    assert re.search(r"-py3-none-(?!any)\w+\.whl$", built.name)
    zipfile.ZipFile(built).extractall(tmp_path)
    package = tmp_path / "rnnkit"
    monkeypatch.setattr(load, "SOURCES", (package / "csrc",))
    assert works(Loader(Cpu()).started(package / "native" / Cpu.library))

    # Again, in the same checkout, with what the first build left there.
    cpu = checkout / "csrc" / "cpu"
    (cpu / "kernels.cpp").rename(cpu / "other.cpp")
    monkeypatch.setenv("CXX", "no-such-compiler")
    built = wheel(checkout, tmp_path / "second")
    assert built.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(built).namelist()
    assert f"rnnkit/native/{Cpu.library}" not in names
    files = [name for name in names if "csrc" in name]
    assert files == ["rnnkit/csrc/cpu/library.cpp", "rnnkit/csrc/cpu/other.cpp"]
