"""The CUDA kernels, from their unmodified sources, in the emulation: equal to the reference."""

import ctypes

import pytest
import torch
from cuda_harness import CSRC, emulates, emulator

from rnnkit import dispatch
from rnnkit.cuda import library
from rnnkit.cuda.plan import KINDS

SOURCE = CSRC / "cuda"
UNITS = [
    (SOURCE / "library.cu", '-DRNNKIT_SOURCE="test"'),
    *((SOURCE / "kernels.cu", f"-DRNNKIT_KIND={kind}") for kind in KINDS),
]


@pytest.fixture(scope="module")
def cuda(pytestconfig):
    found = emulator(pytestconfig, "kernels", UNITS)
    library.install(library.Library(found.library._name, "cpu"))
    yield found
    library.install(None)
