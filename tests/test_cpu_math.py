"""The functions that the CPU kernels use are exact to 2 units in the last place, and saturate."""

import ctypes
import math
import subprocess
from pathlib import Path

import pytest
import torch
from tiny_library import compiles

from rnnkit.native.recipes import cpu as recipe

NATIVE = Path(__file__).parent / "native"
CSRC = Path(__file__).parents[1] / "csrc"
FUNCTIONS = {"sigmoid": 0, "tanh": 1, "relu": 2}
DTYPES = (torch.float32, torch.float64)
# Bits of the mantissa and of the exponent.
BITS = {torch.float32: (23, 8, torch.int32), torch.float64: (52, 11, torch.int64)}

pytestmark = compiles


class Functions:
    """math.h compiled for one instruction set."""

    def __init__(self, instruction_set, folder):
        target = folder / f"{instruction_set}.so"
        options = [*recipe.FLAGS, *recipe.INSTRUCTION_SETS[instruction_set], *recipe.LINK_FLAGS]
        options += [f"-DRNNKIT_ISA={instruction_set}", f"-I{CSRC}", str(NATIVE / "math.cpp")]
        command = recipe.find_compiler().command
        subprocess.check_call([*command, *options, "-lm", "-o", str(target)])
        self.library = ctypes.CDLL(str(target))

    def call(self, kind, function, x, *more):
        name = f"{kind}_{str(x.dtype).removeprefix('torch.')}"
        pointers = [ctypes.c_void_p(x.data_ptr()), *more]
        found = self.library[name]
        found.restype = ctypes.c_double
        return found(ctypes.c_int64(FUNCTIONS[function]), *pointers)

    def __call__(self, function, x):
        y = torch.empty_like(x)
        size = ctypes.c_int64(len(x))
        self.call("apply", function, x, ctypes.c_void_p(y.data_ptr()), size)
        return y

    def worst(self, function, x):
        """The largest error in units of the last place, and where it is."""
        where = ctypes.c_double()
        size = ctypes.c_int64(len(x))
        return self.call("worst", function, x, size, ctypes.byref(where)), where.value


@pytest.fixture(scope="module", params=dict.fromkeys(("baseline", recipe.instruction_sets()[-1])))
def functions(request, tmp_path_factory):
    return Functions(request.param, tmp_path_factory.mktemp("math"))


def of_every_size(dtype, each=64):
    """Numbers of both signs and every exponent, `each` random ones and the smallest of each."""
    mantissa, exponents, integer = BITS[dtype]
    exponent = torch.arange((1 << exponents) - 1, dtype=integer)[:, None] << mantissa
    low = torch.randint(0, 1 << mantissa, (len(exponent), each), dtype=integer)
    low[:, 0] = 0
    sizes = (exponent | low).flatten().view(dtype)
    return torch.cat([sizes, -sizes])


def sweep(dtype, bound, count=1 << 19):
    """Evenly and unevenly spaced numbers between -bound and bound."""
    even = torch.linspace(-bound, bound, count, dtype=dtype)
    near_zero = torch.rand(count, dtype=dtype) ** 4 * bound
    return torch.cat([even, near_zero, -near_zero])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_errors_are_below_two_units(functions, function, dtype):
    if dtype == torch.float64 and functions.library.exact_digits() <= 53:
        pytest.skip("long double is no wider than double here")
    bound = {"sigmoid": {torch.float32: 90, torch.float64: 712}, "tanh": dict.fromkeys(DTYPES, 22)}
    for x in (of_every_size(dtype), sweep(dtype, bound[function][dtype]), sweep(dtype, 2)):
        error, where = functions.worst(function, x)
        assert 0.25 < error < 2, f"{error} units at {where!r}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saturation_is_exact(functions, dtype):
    for size in (1e4, torch.finfo(dtype).max, math.inf):
        x = torch.tensor([size, -size], dtype=dtype)
        assert functions("sigmoid", x).tolist() == [1, 0]
        assert functions("tanh", x).tolist() == [1, -1]
        assert functions("relu", x).tolist() == [x[0].item(), 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_stays_nan(functions, function, dtype):
    """Of either sign, with other numbers beside it, which it leaves alone."""
    x = torch.tensor([math.nan, 1.0, -math.nan, 2.0, 0.5] * 7, dtype=dtype)
    y = functions(function, x)
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y[~x.isnan()], functions(function, x[~x.isnan()]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tanh_of_the_smallest_numbers_is_themselves(functions, dtype):
    least = torch.finfo(dtype).smallest_normal
    sizes = least * 2.0 ** -torch.arange(BITS[dtype][0] + 1, dtype=torch.float64)
    x = torch.cat([sizes, -sizes, least * torch.rand(100, dtype=torch.float64)]).to(dtype)
    assert x.all() and torch.equal(functions("tanh", x), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_stay_in_range_and_in_order(functions, dtype):
    """The order up to their error; outside [0, 1] the slope of a gate would have another sign."""
    x = sweep(dtype, 40).sort().values
    for function, low in (("sigmoid", 0), ("tanh", -1)):
        y = functions(function, x)
        assert y.min() >= low and y.max() <= 1
        assert (y.diff() > -4 * torch.finfo(dtype).eps).all()
