"""Sources of a library with what the loader needs, and little else; it compiles in no time."""

import pytest

from rnnkit.native.recipes import NoLibrary
from rnnkit.native.recipes.cpu import find_compiler

# The sum is computed on torch's threads.
LIBRARY = """
#include <atomic>
#include <cstdint>
#define EXPORT extern "C" __attribute__((visibility("default")))
using Body = void (*)(int64_t, int64_t, void*);
using ParallelFor = int32_t (*)(int64_t, int64_t, int64_t, Body, void*);
static ParallelFor parallel_for = nullptr;
EXPORT const char* rnnkit_source() { return RNNKIT_SOURCE; }
EXPORT void rnnkit_start(ParallelFor given) { parallel_for = given; }
EXPORT int64_t sum_below(int64_t n) {
    std::atomic<int64_t> sum{0};
    auto body = [](int64_t begin, int64_t end, void* sum) {
        for (int64_t i = begin; i < end; ++i) *static_cast<std::atomic<int64_t>*>(sum) += i;
    };
    return parallel_for(0, n, 10, body, &sum) == 0 ? sum.load() : -1;
}
"""
KERNELS = """
#include <algorithm>
#include <cmath>
#include <cstdint>
#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
extern "C" __attribute__((visibility("default")))
void JOIN(special, RNNKIT_ISA, RNNKIT_STORAGE)(int64_t n, const double* x, double* y) {
    for (int64_t i = 0; i < n; ++i) {
        y[4 * i] = std::isnan(x[i]) + 2 * std::isinf(x[i]);
        y[4 * i + 1] = x[i] < 1 ? 1 : x[i] >= 1 ? 2 : 3;
        y[4 * i + 2] = x[i] - x[i];
        y[4 * i + 3] = x[i] != x[i] ? x[i] : std::max(x[i], 0.0);
    }
}
"""

CUDA_LIBRARY = """
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT const char* rnnkit_source() { return RNNKIT_SOURCE; }
EXPORT int rnnkit_ready() { return 0; }
EXPORT const char* rnnkit_error(int) { return "the driver is too old"; }
"""
# What nvcc does for the host, by a C++ compiler. It lists its calls.
NVCC = """#!/bin/sh
echo "$@" >> {log}
case "$1" in
--version) echo "{version}"; exit ;;
--list-gpu-arch) printf 'compute_%s\\n' 75 80 86 90 100; exit ;;
esac
for word do
    shift
    case "$word" in
    -gencode=* | -cudart=* | -Xcompiler=*) ;;
    *.cu) set -- "$@" -x c++ "$word" ;;
    *) set -- "$@" "$word" ;;
    esac
done
exec {compiler} -fPIC "$@"
"""


def has_compiler():
    try:
        return bool(find_compiler())
    except NoLibrary:
        return False


compiles = pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")


def write_sources(csrc):
    """csrc is the folder to make."""
    (csrc / "cpu").mkdir(parents=True)
    (csrc / "cpu" / "library.cpp").write_text(LIBRARY)
    (csrc / "cpu" / "kernels.cpp").write_text(KERNELS)


def works(library):
    """Whether it is there, and computes."""
    return library is not None and library.sum_below(1000) == 499500


def write_cuda_sources(csrc):
    """csrc is the folder to make."""
    (csrc / "cuda").mkdir(parents=True)
    (csrc / "cuda" / "library.cu").write_text(CUDA_LIBRARY)
    for name in ("kernels", "stepwise"):
        (csrc / "cuda" / f"{name}.cu").write_text("static int unused;")


def write_nvcc(home, version="nvcc of the tests"):
    """Makes a CUDA compiler in a folder for CUDA_HOME; returns what lists its calls."""
    path, log = home / "bin" / "nvcc", home / "log"
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler = " ".join(find_compiler().command)
    path.write_text(NVCC.format(log=log, version=version, compiler=compiler))
    path.chmod(0o755)
    return lambda: log.read_text().splitlines() if log.exists() else []
