"""The stepwise form of the CUDA kernels, from its unmodified sources, in the emulation: equal to
the reference. There the emulation's product (test_cuda_gemm.py) takes the place of cuBLAS."""

import ctypes
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import DEVICE_NAME
from cuda_harness import CSRC, compile_for_gpus, compiles_for_gpus, emulates, emulator
from problems import KINDS, LARGER, Kind
from problems import sample as sample_on
from test_numerics import ROUNDINGS

import rnnkit.cells
from rnnkit.cuda import library, stepwise
from rnnkit.cuda import scan as cuda_scan
from rnnkit.dispatch import problem_of
from rnnkit.ops.gradients import gradients
from rnnkit.reference import scan as reference

pytestmark = [] if DEVICE_NAME == "cuda" else [emulates]

UNITS = [(CSRC / "cuda" / "stepwise.cu",)]
CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm", "lstm_peephole")
RESULTS = ("output", "cells", "last", "dx", "dw", "db", "ds0", "dp")
MORE = {
    "300_units": Kind((False, True), lengths=(3, 1), sizes={"T": 3, "B": 2, "H": 300}),
    "long": Kind((True, False), resets=True, sizes={"T": 40, "B": 2, "H": 5}),
}
# Of every kind of product: the operands' type, and the unit in the last place of what it sees.
PRECISIONS = {
    "half": (torch.half, 2**-10),
    "bfloat16": (torch.bfloat16, 2**-7),
    "tf32": (torch.float, 2**-10),
}


@pytest.fixture(scope="module")
def built(pytestconfig):
    """The library, emulated; on a GPU the backend's own."""
    if DEVICE_NAME == "cuda":
        found, reason = library.find(torch.device("cuda"))
        assert found is not None, reason
        return found
    return SimpleNamespace(functions=emulator(pytestconfig, "stepwise", UNITS).library)


@pytest.fixture
def cuda(built, monkeypatch):
    """cuda(kind, seed): the backend, with products of that kind."""
    functions, chosen = built.functions, {}

    def launch(*arguments):
        stepwise.run(built, chosen["kind"], *arguments)

    def choose(kind="ieee", seed=0):
        chosen["kind"] = kind
        if DEVICE_NAME == "cpu":
            functions.emulation_seed(ctypes.c_uint64(seed))
        return cuda_scan

    if DEVICE_NAME == "cpu":
        product = ctypes.cast(functions.emulation_gemm, ctypes.c_void_p).value
        monkeypatch.setattr(stepwise, "gemm", lambda: (product, None))
        functions.rnnkit_error = lambda code: functions.emulation_error()
    monkeypatch.setattr(cuda_scan, "launch", launch)
    return choose


def sample(cell, kind, dtype):
    return sample_on(cell, kind, dtype, torch.device(DEVICE_NAME), grad=False)


def cast(inputs, change):
    """The inputs with other values for the floating-point ones."""
    return inputs._replace(
        **{
            name: change(v)
            for name, v in inputs._asdict().items()
            if isinstance(v, torch.Tensor) and v.is_floating_point()
        }
    )


def results(backend, inputs):
    """Outputs, and every gradient of random cotangents, the same for all dtypes."""
    output, cells, last = backend.scan(inputs)
    generator = torch.Generator().manual_seed(1)
    arriving = [
        torch.randn(v.shape, generator=generator, dtype=torch.double).to(v)
        for v in (output, cells, last)
    ]
    back = gradients(backend, inputs, (output, *cells), arriving)
    return dict(zip(RESULTS, (output, cells, last, *back), strict=True))


def errors(found, inputs):
    """Of every result, the largest, relative to the largest value, as the reference finds them of
    the same inputs in float64."""
    expected = results(reference, cast(inputs, torch.Tensor.double))
    assert {v.dtype for v in found.values()} == {inputs.x.dtype}
    pairs = {name: (found[name].double(), v) for name, v in expected.items() if v.numel()}
    return {
        name: ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()
        for name, (a, b) in pairs.items()
    }


def assert_close(found, inputs, bound=1e-5):
    assert all(error < bound for error in errors(found, inputs).values()), errors(found, inputs)


@compiles_for_gpus
def test_it_compiles_for_gpus_and_stays_in_registers(tmp_path):
    strict = "-Xptxas=-warn-spills,-warn-lmem-usage,-Werror"
    compile_for_gpus(tmp_path, [(*unit, strict) for unit in UNITS])


@pytest.mark.parametrize("kind", [*KINDS, *LARGER, *MORE])
@pytest.mark.parametrize("name", CELLS)
def test_it_equals_the_reference(name, kind, cuda):
    inputs = sample(name, (KINDS | LARGER | MORE)[kind], torch.float)
    assert_close(results(cuda(), inputs), inputs)


def test_the_order_of_threads_does_not_matter(cuda):
    inputs = sample("lstm_peephole", KINDS["all"], torch.float)
    found = [results(cuda(seed=seed), inputs) for seed in range(20)]
    assert_close(found[0], inputs)
    for other in found:
        assert all(torch.equal(v, other[key]) for key, v in found[0].items())


@pytest.mark.parametrize("name", CELLS)
def test_strided_inputs(name, cuda):
    def turned(v):
        """The same values in another layout."""
        return v.transpose(0, -1).contiguous().transpose(0, -1)

    def batch_first(v):
        return v.transpose(0, 1).contiguous().transpose(0, 1)

    inputs = sample(name, KINDS["all"], torch.float)
    expected = results(cuda(), inputs)
    for layout in (turned, batch_first):
        found = results(cuda(), cast(inputs, layout))
        assert all(torch.equal(v, found[key]) for key, v in expected.items())


def moderate(inputs):
    """Weights and values of which a step does not enlarge what was rounded; a relu off its kink,
    where a rounding turns the slope."""
    small = cast(inputs, lambda v: v / 2)._replace(m=inputs.m, d=inputs.d)
    if inputs.cell != "rnn_relu":
        return small
    b = torch.where(small.b > 0, 3.0, -3.0).to(small.b)
    return small._replace(x=small.x / 4, w=small.w / 4, b=b)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CELLS)
def test_low_precision(name, precision, cuda):
    """As far from the same inputs in float64 as independent roundings explain."""
    dtype, unit = PRECISIONS[precision]
    kind = Kind((False, True), lengths=(12, 7, 3), resets=True, sizes={"T": 12, "B": 3, "H": 40})
    inputs = moderate(sample(name, kind, dtype))
    bound = unit / 2 * math.sqrt(12) * ROUNDINGS
    assert_close(results(cuda(precision), inputs), inputs, bound)


def test_between_steps_states_are_in_float(cuda):
    """What is too little for their own type to show in one step adds up, in both directions."""
    T, little = 64, 2**-10
    x = torch.tensor([30, 30, little, 0]).view(4, 1).expand(T, 1, 1, 4, 1)  # i and f are 1
    w, s0 = torch.zeros(1, 4, 1), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    inputs = sample("lstm", KINDS["no_bias_no_start"], torch.bfloat16)
    inputs = inputs._replace(x=x.to(inputs.x), w=w.to(inputs.x), s0=s0.to(inputs.x))
    output, cells, last = cuda("bfloat16").scan(inputs)
    assert last[1] == 1 + T * little
    arriving = (None, torch.full_like(cells, little), inputs.s0)
    ds0 = gradients(cuda_scan, inputs, (output, *cells), arriving)[3]
    assert ds0[1] == 1 + T * little


def test_only_tf32_rounds_float(cuda):
    inputs = sample("gru", KINDS["plain"], torch.float)
    worst = [max(errors(results(cuda(kind), inputs), inputs).values()) for kind in ("ieee", "tf32")]
    assert worst[0] < 1e-6 < 1e-5 < worst[1]


def test_what_goes_wrong_is_said(cuda, monkeypatch):
    inputs = sample("lstm", KINDS["plain"], torch.float)
    refuses = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 15)
    address = ctypes.cast(refuses, ctypes.c_void_p).value
    monkeypatch.setattr(stepwise, "gemm", lambda: (address, None))
    with pytest.raises(RuntimeError, match="cuBLAS refuses a product, status 15"):
        cuda().scan(inputs)


def test_why_not(cuda, built):
    def reason(cell="lstm", **changed):
        problem = problem_of(sample(cell, KINDS["plain"], torch.float))
        return stepwise.why_not(built, "half", problem._replace(**changed))

    assert reason() is None and reason(H=30000) is None
    assert "norms" in reason("lstm_norm") and "two" in reason("gru_before")
    assert "2147483647" in reason(H=2**29) and "2147483647" in reason(B=2**31)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has cuBLAS")
def test_there_is_no_cublas_without_cuda():
    stepwise.gemm.cache_clear()
    address, reason = stepwise.gemm()
    assert address == 0 and "cuBLAS" in reason and torch.__version__ in reason


def test_which_cells_have_it(built):
    plain = {name for name, cell in rnnkit.cells.CELLS.items() if not cell.norm and not cell.inner}
    has = {name for name in plain if stepwise.find(built.functions, name, "half")}
    assert has == set(CELLS)
