"""Compiles the CUDA kernels' unmodified sources: for the CPU, to run in the emulation (tests/cuda),
and for GPUs, to see that they compile."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from rnnkit.native import cache
from rnnkit.native.recipes import NoLibrary
from rnnkit.native.recipes.cpu import find_compiler

EMULATION = Path(__file__).parent / "cuda"
CSRC = Path(__file__).parents[1] / "csrc"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FLAGS = (
    *("-O1", "-std=c++17", "-fPIC", "-Wall", "-Werror"),
    # What nvcc allows: the same memory seen as words and as numbers, and #pragma unroll.
    *("-fno-strict-aliasing", "-Wno-unknown-pragmas"),
)
# Has the emulation watch a source's threads for races (tests/cuda/races.h).
WATCHED = "-fsanitize=thread"
NVCC_FLAGS = ("-std=c++17", "-Werror", "all-warnings", "-Xcompiler", "-Wall")


def nvcc():
    """NVIDIA's compiler, or None."""
    return shutil.which("nvcc")


def headers():
    """The folder of CUDA's headers, of its compiler or as they come with triton; or None."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    if compiler := nvcc():
        homes.append(Path(compiler).resolve().parents[1])
    if triton := find_spec("triton"):
        homes.append(Path(triton.origin).parent / "backends" / "nvidia")
    found = (home / "include" for home in homes if (home / "include" / "cuda_bf16.h").exists())
    return next(found, None)


def why_no_emulation():
    try:
        find_compiler()
    except NoLibrary as error:
        return str(error)
    return None if headers() else "there are no CUDA headers"


# A test that needs one of them is skipped where it is not.
emulates = pytest.mark.skipif(bool(why_no_emulation()), reason=f"{why_no_emulation()}")
compiles_for_gpus = pytest.mark.skipif(not nvcc(), reason="there is no nvcc")


class Fault(Exception):
    """What went wrong in a launch."""


def converted(argument):
    """The address of an array's or tensor's data; what is neither as it is."""
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return ctypes.c_void_p(argument.ctypes.data)
    if hasattr(argument, "data_ptr"):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    return argument


class Emulator:
    """Calls functions of a library that launch kernels and return an error's code.

    Arguments are arrays, tensors, integers, which become C's int, and what else ctypes knows.
    """

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.emulation_error.restype = ctypes.c_char_p

    def __call__(self, name, *arguments, seed=0):
        self.library.emulation_seed(ctypes.c_uint64(seed))
        if self.library[name](*map(converted, arguments)) != 0:
            raise Fault(self.library.emulation_error().decode())


def digest_of(paths, what):
    digest = hashlib.sha256(repr(what).encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compiled(command, folder):
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def emulator(config, name, units, *options):
    """Sources, each with its own options, as a library for the CPU, compiled when any changed."""
    compiler = find_compiler()
    # Its own sources first: what these share with others, of the standard library, is not WATCHED.
    # They are what takes the time; kernels would take longer to compile than to run.
    units = [*((path, "-O3") for path in sorted(EMULATION.glob("*.cpp"))), *units]
    found = [path for root in (CSRC, EMULATION) for path in sorted(root.rglob("*.h"))]
    digest = digest_of([*found, *(path for path, *_ in units)], (compiler, FLAGS, options, units))
    folder = config.cache.mkdir("cuda")
    target = folder / f"{name}-{digest}.so"
    given = [*FLAGS, *options, f"-I{CSRC}", f"-I{EMULATION}", "-isystem", headers()]
    with cache.locked(folder / name):
        if not target.exists():
            for old in folder.glob(f"{name}-*.so"):
                old.unlink()
            objects = [folder / name / f"{number}.o" for number in range(len(units))]
            commands = [
                [*compiler.command, *given, *own, "-x", "c++", "-c", source, "-o", to]
                for (source, *own), to in zip(units, objects, strict=True)
            ]
            # Test processes wait for each other here: one makes use of all processors.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(compiled, commands, [folder] * len(commands)))
            compiled([*compiler.command, "-shared", *objects, "-o", f"{target}.new"], folder)
            os.replace(f"{target}.new", target)
    return Emulator(target)


def compile_for_gpus(folder, units, architectures=ARCHITECTURES):
    """Fails with what nvcc says, unless it makes objects of all units without a warning."""
    known = subprocess.check_output([nvcc(), "--list-gpu-code"], text=True).split()
    if missing := set(architectures).difference(known):
        pytest.skip(f"nvcc does not know {', '.join(sorted(missing))}")
    codes = [f"-gencode=arch={name.replace('sm', 'compute')},code={name}" for name in architectures]
    for source, *options in units:
        given = [*NVCC_FLAGS, *codes, *options, f"-I{CSRC}", "-c", source, "-o", "unit.o"]
        compiled([nvcc(), *given], folder)
