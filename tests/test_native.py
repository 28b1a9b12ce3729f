"""The CPU kernels' library is built once and found again; when missing it is only a reason."""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_library import LIBRARY, compiles, works, write_sources

from rnnkit import native
from rnnkit.native import cache, load
from rnnkit.native.recipes import Cpu, Refusal
from rnnkit.native.recipes.compiler import run
from rnnkit.native.recipes.cpu import LINK_FLAGS, find_compiler, instruction_sets


@pytest.fixture
def csrc(tmp_path):
    """Sources of a tiny library."""
    write_sources(tmp_path / "csrc")
    return tmp_path / "csrc"


@pytest.fixture
def fresh(tmp_path, csrc, monkeypatch):
    """A package and a cache without a library, in a process that has not asked for one."""
    (tmp_path / "rnnkit" / "native").mkdir(parents=True)
    monkeypatch.setattr(load, "PACKAGE", tmp_path / "rnnkit")
    monkeypatch.setattr(load, "SOURCES", (csrc,))
    monkeypatch.setattr(load, "_found", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RNNKIT_BUILD", raising=False)


@pytest.fixture
def packaged(fresh, tmp_path):
    """Where the package has its library."""
    return tmp_path / "rnnkit" / "native" / Cpu.library


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Lists what the compiler was asked to do."""
    real, wrapper, path = find_compiler().command, tmp_path / "logged", tmp_path / "log"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {path}\nexec {" ".join(real)} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", str(wrapper))
    return lambda: path.read_text().splitlines()


def cached(csrc):
    """Where the cache has the library of these sources."""
    return cache.place(Cpu(instruction_sets()), Cpu.source_hash(csrc))


def ask_again(monkeypatch):
    """What the next process would get."""
    monkeypatch.setattr(load, "_found", {})
    return native.library()


def links(lines):
    return sum(LINK_FLAGS[0] in line for line in lines)


@compiles
def test_it_is_built_once_and_found_again(fresh, log, monkeypatch, recwarn, capfd):
    assert works(native.library()[0])
    assert re.fullmatch(
        r"rnnkit: compiling its CPU kernels, once .*\nrnnkit: compiled in \d+ s\n",
        capfd.readouterr().err,
    )
    library, reason = ask_again(monkeypatch)
    assert works(library) and reason is None
    assert links(log()) == 1 and not recwarn and not capfd.readouterr().err
    assert Path(library._name) == cached(load.SOURCES[0])
    assert sorted(os.listdir(Path(library._name).parent)) == [Cpu.library, "lock"]


@compiles
def test_other_sources_are_another_library(fresh, csrc, log, monkeypatch):
    first = native.library()[0]._name
    header = csrc / "cells" / "cell.h"
    header.parent.mkdir()
    header.write_text("// new")
    assert works(ask_again(monkeypatch)[0]) and native.library()[0]._name != first
    assert links(log()) == 2


def ask(barrier, results):
    barrier.wait()
    results.put(works(native.library()[0]))


@compiles
def test_of_two_processes_one_builds(fresh, log, capfd):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    both = [context.Process(target=ask, args=(barrier, results), daemon=True) for _ in range(2)]
    for process in both:
        process.start()
    assert [results.get(timeout=30) for _ in both] == [True, True]
    for process in both:
        process.join()
    assert links(log()) == 1
    waits = "rnnkit: waiting for another process that compiles in "
    assert capfd.readouterr().err.count(waits) == 1


@compiles
def test_a_forked_child_uses_it_and_is_not_locked_out(fresh, monkeypatch):
    context = multiprocessing.get_context("fork")
    assert works(native.library()[0])
    for found in (load._found, {}):
        monkeypatch.setattr(load, "_found", found)
        results = context.Queue()
        child = context.Process(target=ask, args=(context.Barrier(1), results), daemon=True)
        with load._lock:  # as if another thread were loading it
            child.start()
        assert results.get(timeout=30)
        child.join()


def damaged(path, how):
    """Puts something that is no good where the library should be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source, compiler = path.parent / "broken.cpp", find_compiler().command
    text = {"no function": "", "other sources": LIBRARY, "truncated": LIBRARY}.get(how)
    if text is None:
        path.write_bytes({"empty": b"", "noise": b"noise " * 1000}[how])
        return
    source.write_text(text)
    options = ["-fPIC", '-DRNNKIT_SOURCE="old"', str(source), "-o", str(path)]
    subprocess.check_call([*compiler, *LINK_FLAGS, *options])
    source.unlink()
    if how == "truncated":
        os.truncate(path, path.stat().st_size - 1)


@compiles
@pytest.mark.parametrize("where", ["package", "cache"])
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("empty", "file too short|no such file|not a mach-o"),
        ("noise", "invalid ELF header|mach-o"),
        ("no function", "rnnkit_source"),
        ("other sources", r"it was built from other sources \(old, not \w{16}\)"),
        pytest.param(
            *("truncated", "its end is missing"),
            marks=pytest.mark.skipif(sys.platform == "darwin", reason="macOS checks it itself"),
        ),
    ],
)
def test_a_broken_file_is_named_once_and_another_built(
    packaged, csrc, where, how, reason, monkeypatch
):
    path = packaged if where == "package" else cached(csrc)
    damaged(path, how)
    with pytest.warns(RuntimeWarning) as warned:
        assert works(native.library()[0])
    assert len(warned) == 1
    assert re.search(f"{re.escape(str(path))} cannot be .*({reason})", str(warned[0].message))
    monkeypatch.setenv("RNNKIT_BUILD", "0")
    if where == "cache":  # the new one is in its place
        assert works(ask_again(monkeypatch)[0])


@compiles
def test_the_package_comes_first_and_needs_no_sources(packaged, csrc, monkeypatch, recwarn):
    Cpu().build(packaged, csrc)
    monkeypatch.setenv("RNNKIT_BUILD", "0")
    assert native.library()[0]._name == str(packaged)
    shutil.rmtree(csrc)
    assert works(ask_again(monkeypatch)[0]) and not recwarn


@compiles
def test_who_compiled_it_does_not_matter(fresh, log, monkeypatch, recwarn):
    first = native.library()[0]._name
    monkeypatch.setenv("CXX", f"{os.environ['CXX']} -g")
    assert ask_again(monkeypatch)[0]._name == first
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert ask_again(monkeypatch)[0]._name == first and links(log()) == 1 and not recwarn


def test_a_library_for_lesser_cpus_is_of_no_use():
    assert Cpu(("baseline", "some")).why_not(["baseline", "some", "more"]) is None
    assert Cpu(("baseline", "some")).why_not(["baseline"]) == "it is for baseline, not for some"


def test_reasons_without_a_compiler(fresh, csrc, monkeypatch, recwarn):
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    assert re.search(r"no working C\+\+ compiler .*no-such-compiler", native.library()[1])
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    library, reason = ask_again(monkeypatch)
    assert library is None and "(tried: c++, g++, clang++)" in reason
    monkeypatch.setenv("RNNKIT_BUILD", "0")
    assert "RNNKIT_BUILD=0" in ask_again(monkeypatch)[1]
    monkeypatch.delenv("RNNKIT_BUILD")
    monkeypatch.setattr(sys, "platform", "win32")
    assert "MSVC is not supported" in ask_again(monkeypatch)[1]
    shutil.rmtree(csrc)
    assert "neither it nor its sources" in ask_again(monkeypatch)[1]
    assert not recwarn


@compiles
def test_what_the_compiler_refuses_is_remembered(fresh, csrc, log, monkeypatch, recwarn):
    (csrc / "cpu" / "kernels.cpp").write_text("static int broken = no_such_name;")
    assert re.search(r"kernels.cpp:1:.*no_such_name", native.library()[1])
    (warned,) = (str(warning.message) for warning in recwarn.list)
    assert "no_such_name" in warned
    recwarn.clear()
    tried = len(log())
    library, reason = ask_again(monkeypatch)
    assert library is None and "no_such_name" in reason and "failure.txt" in reason
    (warned,) = (str(warning.message) for warning in recwarn.list)
    assert warned == f"rnnkit's CPU kernels: {reason.removeprefix('its library is not there: ')}"
    assert log()[tried:] == ["--version"]
    monkeypatch.setenv("CXX", f"{os.environ['CXX']} -Dno_such_name=0")  # another compiler
    assert works(ask_again(monkeypatch)[0])


# What a compiler does that says nothing of the sources.
PASSING = {
    "signal": "kill -9 $$",
    "signal of a part": "echo 'nvcc error : cicc died due to signal 9 (Kill signal)' >&2; exit 1",
    "full disk": "echo $csrc/cpu/kernels.cpp:1:1: fatal error: error writing to /tmp/x >&2; exit 1",
    "no g++": "echo '/usr/include/host_config.h:1:2: error: unsupported GNU version' >&2; exit 1",
    "no such GPU": "echo 'nvcc fatal : Unsupported gpu architecture compute_120' >&2; exit 1",
}


@compiles
@pytest.mark.parametrize("how", PASSING)
def test_what_passes_is_not_remembered(how, fresh, csrc, log, tmp_path, monkeypatch):
    wrapper = Path(os.environ["CXX"])
    works_again = wrapper.read_text()
    fails = f'csrc={csrc}\ncase "$1" in --version) ;; *) {PASSING[how]} ;; esac\nexec'
    wrapper.write_text(works_again.replace("exec", fails))
    with pytest.warns(RuntimeWarning, match="rnnkit's CPU kernels: .* failed"):
        assert native.library()[0] is None
    wrapper.write_text(works_again)
    assert works(ask_again(monkeypatch)[0])


def test_what_is_said_of_the_sources(tmp_path):
    for said in (
        f"{tmp_path}/cuda/kernels.cu(12): error: identifier is undefined",
        f"{tmp_path}/cpu/kernels.cpp:1:27: error: was not declared",
        "ptxas error   : Entry function uses too much shared data",
        "ptxas /tmp/some.ptx, line 5; error   : Feature requires sm_90",
    ):
        with pytest.raises(Refusal, match=re.escape(said)):
            run(["sh", "-c", f"echo '{said}' >&2; exit 1"], tmp_path)


@compiles
@pytest.mark.filterwarnings("ignore:rnnkit's CPU kernels:RuntimeWarning")
def test_a_new_library_that_cannot_be_started_is_not_built_again(fresh, csrc, log, monkeypatch):
    source = csrc / "cpu" / "library.cpp"
    source.write_text(source.read_text().replace("rnnkit_start", "rnnkit_begin"))
    for _ in range(2):
        library, reason = ask_again(monkeypatch)
        assert library is None and "rnnkit_start" in reason
    assert links(log()) == 1


@compiles
def test_a_cache_that_cannot_be_written_is_a_reason(fresh, tmp_path, monkeypatch, recwarn):
    (tmp_path / "cache").write_text("a file where the folder should be")
    library, reason = native.library()
    assert library is None and str(tmp_path / "cache") in reason and not recwarn


@compiles
def test_a_torch_without_the_function(packaged, csrc, log, monkeypatch, recwarn):
    Cpu(instruction_sets()).build(packaged, csrc)
    monkeypatch.setattr(torch._C, "__file__", str(packaged))
    before = links(log())
    library, reason = native.library()
    assert library is None and links(log()) == before
    (warned,) = (str(warning.message) for warning in recwarn.list)
    for text in (warned, reason):
        assert f"{packaged} cannot be used: torch {torch.__version__} lacks" in text
