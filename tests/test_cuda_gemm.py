"""The product that takes the place of cuBLAS in the emulation (tests/cuda/gemm.cpp): what cuBLAS
documents of cublasGemmStridedBatchedEx."""

import ctypes
import itertools
import math

import pytest
import torch
from cuda_harness import emulates, emulator


@pytest.fixture(scope="module")
def cuda(pytestconfig):
    return emulator(pytestconfig, "gemm", [])


TYPES = {torch.half: 2, torch.bfloat16: 14, torch.float: 0, torch.double: 1}
M, N, K, COUNT = 5, 4, 6, 3


class Matrices:
    """Of whole numbers, which every type has, COUNT of them, each (rows, columns) if not turned;
    all around them is NaN."""

    def __init__(self, rows, columns, dtype, turned=False, pitch=None):
        rows, columns = (columns, rows) if turned else (rows, columns)
        self.turned, self.pitch = turned, pitch or rows + 3
        self.stride = self.pitch * columns + 7
        self.memory = torch.full((COUNT * self.stride,), math.nan, dtype=dtype)
        stored = self.memory.as_strided((COUNT, rows, columns), (self.stride, 1, self.pitch))
        self.values = stored.mT if turned else stored
        self.values.copy_(torch.randint(-8, 8, self.values.shape))

    def words(self):
        dtype = ctypes.c_int(TYPES[self.memory.dtype])
        place = ctypes.c_void_p(self.memory.data_ptr())
        return place, dtype, ctypes.c_int(self.pitch), ctypes.c_longlong(self.stride)


def product(cuda, a, b, c, compute, alpha=1.0, beta=0.0):
    """c = alpha * op(a) @ op(b) + beta * c; returns the status."""
    real = ctypes.c_double if c.memory.dtype == torch.double else ctypes.c_float
    alpha, beta = (ctypes.byref(real(v)) for v in (alpha, beta))
    words = (a.turned, b.turned, M, N, K, alpha, *a.words(), *b.words(), beta, *c.words())
    return cuda.library.emulation_gemm(None, *words, COUNT, compute, -1)


@emulates
@pytest.mark.parametrize(
    ("dtype", "compute"),
    [
        (torch.half, 68),
        (torch.bfloat16, 68),
        (torch.float, 69),
        (torch.float, 77),
        (torch.double, 70),
    ],
)
def test_the_product(cuda, dtype, compute):
    """Matrices by columns, as in Fortran; exact, since all sums are whole numbers."""
    cases = itertools.product((False, True), (False, True), (0.0, 2.0))
    for turned_a, turned_b, beta in cases:
        a, b = Matrices(M, K, dtype, turned_a), Matrices(K, N, dtype, turned_b)
        c = Matrices(M, N, torch.promote_types(dtype, torch.float))
        expected = 3 * a.values.to(c.values) @ b.values.to(c.values)
        if beta:
            expected += beta * c.values
        else:
            c.values.fill_(math.nan)
        around = c.memory.isnan().sum() - c.values.isnan().sum()
        assert product(cuda, a, b, c, compute, 3.0, beta) == 0
        assert torch.equal(c.values, expected) and c.memory.isnan().sum() == around


@emulates
def test_it_rounds_to_tf32_only_if_asked(cuda):
    a, b = Matrices(M, K, torch.float), Matrices(K, N, torch.float)
    a.values.fill_(1 + 2**-12)
    for compute, expected in ((69, 1 + 2**-12), (77, 1)):
        c = Matrices(M, N, torch.float)
        assert product(cuda, a, b, c, compute) == 0
        assert torch.equal(c.values, expected * b.values.sum(1, keepdim=True).expand_as(c.values))


@emulates
def test_what_it_refuses(cuda):
    def status(dtype=torch.half, compute=68, result=torch.float, turned=True, pitch=None):
        a, b = Matrices(M, K, dtype, turned, pitch), Matrices(K, N, dtype)
        return product(cuda, a, b, Matrices(M, N, result), compute)

    assert status() == status(pitch=K) == status(turned=False, pitch=M) == 0
    assert status(pitch=K - 1) == status(turned=False, pitch=M - 1) == 7
    assert {status(compute=69), status(torch.float, 70), status(result=torch.half)} == {15}
