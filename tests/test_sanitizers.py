"""The CPU kernels touch only memory that is theirs, and no two threads the same at once.

Compiled with sanitizers they run in a program of their own (tests/native), on its own threads:
those of torch are synchronised in ways that a sanitizer does not see.
"""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from tiny_library import compiles

from rnnkit.native import cache
from rnnkit.native.recipes import cpu as recipe

NATIVE = Path(__file__).parent / "native"
CSRC = Path(__file__).parents[1] / "csrc"
BEST = recipe.instruction_sets()[-1]
MEMORY, THREADS = "address,undefined", "thread"
# New memory is filled with ones, which are NaN: a result of what nobody wrote is seen, too.
OPTIONS = {
    "ASAN_OPTIONS": f"max_malloc_fill_size={1 << 30}:malloc_fill_byte=255",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}
PROBLEMS = {MEMORY: 25, THREADS: 8}

pytestmark = compiles


def compiled(target, sanitizer, options, sources):
    """Compiles a program; returns how that went."""
    compiler = recipe.find_compiler().command
    given = [*recipe.FLAGS, "-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={sanitizer}"]
    command = [*compiler, *given, "-fno-sanitize-recover=all", *options, *map(str, sources)]
    return subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)


def check_available(sanitizer, folder):
    """Skips where the compiler or the system lacks the sanitizer."""
    source, probe = folder / "probe.cpp", folder / "probe"
    source.write_text("int main() { return 0; }")
    done = compiled(probe, sanitizer, [], [source])
    if done.returncode == 0:
        done = subprocess.run([probe], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"-fsanitize={sanitizer} does not work here: {done.stderr[-300:]}")


def program(pytestconfig, folder, sanitizer, instruction_set, storage):
    """The program for one storage type and instruction set, compiled when its sources changed."""
    sources = [NATIVE / "kernels.cpp", NATIVE / "main.cpp", CSRC / "cpu" / "library.cpp"]
    options = [
        *recipe.INSTRUCTION_SETS[instruction_set],
        *(f"-DRNNKIT_ISA={instruction_set}", f"-DRNNKIT_STORAGE={storage}"),
        *(f"-DRNNKIT_HAS_{instruction_set.upper()}", '-DRNNKIT_SOURCE=""', f"-I{CSRC}"),
    ]
    digest = hashlib.sha256(recipe.Cpu.source_hash(CSRC).encode())
    for part in (__file__, *sorted(NATIVE.iterdir())):
        digest.update(Path(part).read_bytes())
    digest.update(repr((recipe.find_compiler(), sanitizer, options)).encode())
    programs = pytestconfig.cache.mkdir("sanitizers")
    name = f"{sanitizer.replace(',', '-')}-{instruction_set}-{storage}"
    target = programs / f"{name}-{digest.hexdigest()[:16]}"
    with cache.locked(programs / name):
        if not target.exists():
            check_available(sanitizer, folder)
            for old in programs.glob(f"{name}-*"):
                old.unlink()
            done = compiled(folder / "program", sanitizer, options, sources)
            assert done.returncode == 0, done.stderr
            os.replace(folder / "program", target)
    return target


def run(path, instruction_set, *what):
    return subprocess.run(
        [path, instruction_set, *map(str, what)],
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | OPTIONS,
        timeout=900,
    )


@pytest.mark.parametrize(
    ("sanitizer", "instruction_set", "storage"),
    [
        (MEMORY, "baseline", "float"),
        (THREADS, "baseline", "float"),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (
                *((MEMORY, "baseline", storage) for storage in ("double", "bfloat16")),
                *((MEMORY, BEST, storage) for storage in recipe.STORAGE if BEST != "baseline"),
                *((THREADS, BEST, storage) for storage in recipe.STORAGE if BEST != "baseline"),
            )
        ),
    ],
)
def test_the_kernels_are_clean(pytestconfig, tmp_path, sanitizer, instruction_set, storage):
    """And have the same results by any threads, for every cell and kind of problem."""
    path = program(pytestconfig, tmp_path, sanitizer, instruction_set, storage)
    count = PROBLEMS[sanitizer]
    for what in (("scans", count), ("steps", count), ("large", 1), ("together", count)):
        done = run(path, instruction_set, *what)
        assert done.returncode == 0, f"{' '.join(map(str, what))}:\n{done.stderr[:20000]}"

    # A fault on purpose: the program is watched.
    fault, name = (
        ("short", "heap-buffer-overflow") if sanitizer == MEMORY else ("twice", "data race")
    )
    done = run(path, instruction_set, fault)
    assert done.returncode != 0 and name in done.stderr, done.stderr[:20000]
