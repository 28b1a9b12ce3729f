"""The stepwise form of the CUDA kernels, from its unmodified sources, in the emulation: equal to
the reference. There the emulation's product (test_cuda_gemm.py) takes the place of cuBLAS."""

import ctypes
import math

import pytest
import torch
from conftest import DEVICE_NAME
from cuda_harness import (
    ARCHITECTURES,
    CSRC,
    compile_for_gpus,
    compiles_for_gpus,
    emulates,
    emulator,
)
from problems import KINDS, LARGER, TINY, Kind, differentiable, with_tensors
from problems import sample as sample_on
from test_cuda_kernels import (
    DTYPES,
    EPS,
    assert_close,
    cells,
    chosen,
    in_double,
    install,
    lacking,
    largest,
    on,
    precision,
    seed,
    with_defect,
)
from test_cuda_norms import check_large_mean, check_zero_state, shows
from test_scan import assert_same

import rnnkit
from rnnkit.cuda import library, stepwise
from rnnkit.cuda import scan as cuda_scan
from rnnkit.cuda.plan import Gpu
from rnnkit.dispatch import problem_of
from rnnkit.native.recipes.cuda import KINDS as PRODUCTS
from rnnkit.native.recipes.cuda import STEPWISE_KINDS
from rnnkit.ops.scan import scan

__all__ = ["precision"]
pytestmark = [] if DEVICE_NAME == "cuda" else [emulates]

CELLS = cells()
# One of each form: plain, with an inner step, and normed: sums, products, those of two products,
# and within the step.
FORMS = (
    *("lstm_peephole", "gru_before", "rnn_tanh_norm", "gru_norm", "gru_before_norm_gates"),
    *("lstm_norm", "lstm_norm_gates_carry"),
)
NORMED = FORMS[2:]
SEEDS = range(20)
MORE = {
    # More of them than a block has threads.
    "600_units": Kind((False, True), lengths=(3, 1), sizes={"T": 3, "B": 2, "H": 600}),
    "long": Kind((True, False), resets=True, sizes={"T": 40, "B": 2, "H": 5}),
}
EVERY = KINDS | LARGER | MORE
# Several warps of each row.
WARPS = Kind((False, True), 1, (4, 0, 3), True, True, True, sizes={"T": 4, "B": 3, "H": 70})


def units(csrc):
    """What is compiled to a library."""
    own = [(csrc / "cuda" / "library.cu", '-DRNNKIT_SOURCE="test"')]
    return [*own, (csrc / "cuda" / "stepwise.cu",), lacking(PRODUCTS)]


@pytest.fixture(scope="module")
def built(pytestconfig):
    """The emulated library, in use; on a GPU the backend's own, None."""
    if DEVICE_NAME == "cuda":
        yield None
        return
    found = emulator(pytestconfig, "stepwise", units(CSRC))
    install(found)
    yield found
    install(None)


def pin_to_steps(monkeypatch, emulated):
    monkeypatch.setattr(cuda_scan, "gpu_of", lambda device: Gpu(0, 0))
    if emulated is not None:
        product = ctypes.cast(emulated.library.emulation_gemm, ctypes.c_void_p).value
        monkeypatch.setattr(stepwise, "gemm", lambda: (product, None))
        seed(emulated, 0)


@pytest.fixture
def cuda(built, monkeypatch):
    """The library, on a GPU that has no room for another form."""
    pin_to_steps(monkeypatch, built)
    rnnkit.dispatch.decide.cache_clear()
    yield built
    rnnkit.dispatch.decide.cache_clear()


def sample(cell, kind, dtype=torch.float, **kwargs):
    return sample_on(cell, kind, dtype, torch.device(DEVICE_NAME), **kwargs)


def same(found, expected):
    return all(torch.equal(found[name], v) for name, v in expected.items())


STRICT = "-Xptxas=-warn-spills,-warn-lmem-usage,-Werror"


@compiles_for_gpus
@pytest.mark.slow
@pytest.mark.parametrize("target", ARCHITECTURES)
def test_it_compiles_for_gpus_and_stays_in_registers(tmp_path, target):
    compile_for_gpus(tmp_path, [(CSRC / "cuda" / "stepwise.cu", STRICT)], [target])


@compiles_for_gpus
def test_some_cells_compile_for_a_gpu(tmp_path):
    """Of each form one: all of them take as long as many tests."""
    nvcc = pytest.importorskip("benchmarks.nvcc")
    some = nvcc.only(["gru_before_norm", "lstm", "lstm_norm"], tmp_path)
    compile_for_gpus(tmp_path, [(CSRC / "cuda" / "stepwise.cu", STRICT, *some)], ["sm_90"])


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("name", CELLS)
def test_it_equals_the_reference(name, kind, cuda):
    inputs = sample(name, EVERY[kind])
    assert_close(on("cuda", inputs), inputs)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("name", CELLS)
def test_float64(name, kind, cuda):
    inputs = sample(name, EVERY[kind], torch.double)
    assert_same(on("cuda", inputs), on("reference", inputs), 1e-12)


@pytest.mark.parametrize("kind", ["tiny", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CELLS)
def test_gradcheck(name, kind, cuda):
    inputs = sample(name, {"tiny": TINY, "all": KINDS["all"]}[kind], torch.double)

    def call(*tensors):
        return tuple(v for v in scan(*with_tensors(inputs, tensors)) if v.numel())

    with rnnkit.backend("cuda"):
        given = differentiable(inputs)
        assert torch.autograd.gradcheck(call, given, nondet_tol=0.0, fast_mode=kind == "all")


@pytest.mark.parametrize("kind", [rnnkit.RNN, rnnkit.LSTM, rnnkit.GRU])
def test_gradcheck_of_a_layer(kind, cuda):
    """Whose forward leaves for backward what its products gave."""
    more = {"dtype": torch.double, "device": DEVICE_NAME}
    layer = kind(2, 3, bidirectional=True, **more)
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(3, 2, 2, requires_grad=True, **more)

    def call(x, *values):
        given = dict(zip(names, values, strict=True))
        output, final = torch.func.functional_call(layer, given, (x,), {"lengths": lengths})
        return output, *(final if isinstance(final, tuple) else (final,))

    lengths = torch.tensor([3, 1])
    with rnnkit.backend("cuda"):
        assert torch.autograd.gradcheck(call, (x, *values), nondet_tol=0.0)


@pytest.mark.parametrize("name", FORMS)
def test_the_order_of_threads_does_not_matter(name, cuda):
    inputs = sample(name, WARPS)
    expected = on("cuda", inputs)
    assert_close(expected, inputs)
    for k in SEEDS:
        seed(cuda, k)
        assert same(on("cuda", inputs), expected)


@pytest.mark.skipif(DEVICE_NAME == "cuda", reason="cuBLAS promises nothing")
@pytest.mark.parametrize("name", FORMS)
def test_a_row_does_not_depend_on_the_batch(name, cuda):
    inputs = sample(name, Kind(sizes={"T": 3, "B": 5, "H": 40}), grad=False)
    with rnnkit.backend("cuda"):
        whole = scan(*inputs)[0]
        for b in (0, 4):
            alone = inputs._replace(x=inputs.x[:, b : b + 1], s0=inputs.s0[:, b : b + 1])
            assert torch.equal(scan(*alone)[0][:, 0], whole[:, b])


@pytest.mark.parametrize("name", CELLS)
def test_strided_inputs(name, cuda):
    def turned(v):
        """The same values in another layout."""
        return v.transpose(0, -1).contiguous().transpose(0, -1)

    def batch_first(v):
        return v.transpose(0, 1).contiguous().transpose(0, 1)

    inputs = sample(name, KINDS["all"])
    expected = on("cuda", inputs)
    for layout in (turned, batch_first):
        assert same(on("cuda", changed(inputs, layout)), expected)


def changed(inputs, change):
    """The inputs with other values for the floating-point ones."""
    return inputs._replace(
        **{
            name: change(v.detach()).requires_grad_(v.requires_grad)
            for name, v in inputs._asdict().items()
            if isinstance(v, torch.Tensor) and v.is_floating_point()
        }
    )


def moderate(inputs):
    """Weights and values of which a step does not enlarge what was rounded; a relu off its kink,
    where a rounding turns the slope."""
    small = changed(inputs, lambda v: v / 2)._replace(m=inputs.m, d=inputs.d)
    if "relu" not in inputs.cell:
        return small
    b = torch.where(small.b > 0, 3.0, -3.0).to(small.b).requires_grad_()
    x, w = (v.detach().div(4).requires_grad_() for v in (small.x, small.w))
    return small._replace(x=x, w=w, b=b)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_low_precision(name, kind, cuda, precision):
    """As far from the same inputs in float64 as independent roundings explain."""
    precision(kind)
    every = Kind((False, True), lengths=(12, 7, 3), resets=True, sizes={"T": 12, "B": 3, "H": 40})
    inputs = moderate(sample(name, every, DTYPES[kind]))
    found, exact = on("cuda", inputs), in_double(inputs)
    bound = EPS[kind] / 2 * math.sqrt(12) * ROUNDINGS
    for name, v in exact.items():
        assert largest(found[name] - v) <= bound * largest(v), name


# Roundings that a value meets in one step, forward and backward, at most.
ROUNDINGS = 6


def test_between_steps_states_are_in_float(cuda):
    """What is too little for their own type to show in one step adds up, in both directions."""
    T, little = 64, 2**-10
    x = torch.tensor([30, 30, little, 0]).view(4, 1).expand(T, 1, 1, 4, 1)  # i and f are 1
    w, s0 = torch.zeros(1, 4, 1), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    inputs = sample("lstm", KINDS["no_bias_no_start"], torch.bfloat16, grad=False)
    inputs = inputs._replace(x=x.to(inputs.x), w=w.to(inputs.x), s0=s0.to(inputs.x))
    output, cells, last = cuda_scan.scan(inputs)
    assert last[1] == 1 + T * little
    arriving = (None, torch.full_like(cells, little), inputs.s0)
    ds0 = cuda_scan.gradients(inputs, (output, cells), None, arriving)[3]
    assert ds0[1] == 1 + T * little


def test_only_tf32_rounds_float(cuda, precision):
    inputs, worst = sample("gru", KINDS["plain"]), {}
    exact = in_double(inputs)
    for kind in ("ieee", "tf32"):
        precision(kind)
        worst[kind] = max(largest(v - exact[name]) for name, v in on("cuda", inputs).items())
    assert worst["ieee"] < 1e-5 < 1e-4 < worst["tf32"]


@pytest.mark.parametrize("name", ["rnn_tanh_norm", "gru_norm", "gru_norm_gates"])
def test_a_large_mean_hides_no_small_spread(name, cuda):
    check_large_mean(sample(name, Kind(sizes={"T": 1, "B": 3, "H": 70})))


@pytest.mark.parametrize("name", FORMS)
def test_padding_may_hold_anything(name, cuda):
    inputs = sample(name, Kind((False, True), 1, (3, 0, 4), sizes={"T": 4, "B": 3, "H": 37}))
    expected = on("reference", inputs)
    with torch.no_grad():
        inputs.x[3:, 0] = inputs.x[:, 1] = float("nan")
    assert_same(on("cuda", inputs), expected, 1e-5)


@pytest.mark.parametrize("name", NORMED)
def test_a_zero_state_in_half_precision(name, cuda):
    check_zero_state(sample(name, Kind(resets=True, sizes={"T": 5, "B": 4, "H": 40}), torch.half))


@pytest.mark.parametrize("name", ["gru_norm", "lstm_norm_gates_carry"])
def test_eps(name, cuda):
    inputs = sample(f"{name}@0.5", KINDS["all"])
    assert_close(on("cuda", inputs), inputs)


# A defect, by the text that it replaces in a file of csrc/cuda, and what then stands there.
PLANTED = {
    "sums that are read too early": (
        "row_norm.h",
        "        synchronise();\n        for (int k = 0",
        "        for (int k = 0",
    ),
    "sums that are written too early": ("row_norm.h", "synchronise();  // until", "// until"),
    "a product too few": (
        "stepwise.h",
        "if (k > 0) error = multiply",
        "if (k > 1) error = multiply",
    ),
}


@pytest.mark.skipif(DEVICE_NAME == "cuda", reason="defects are shown by schedules")
@pytest.mark.parametrize("defect", chosen(PLANTED, "sums that are read too early"))
def test_defects_are_found(defect, cuda, pytestconfig, tmp_path):
    """At least one of the schedules shows a defect; without it none does, as is seen above."""
    inputs = sample("lstm_norm", WARPS)
    expected = on("reference", inputs)
    csrc = with_defect(tmp_path, "lstm_norm", *PLANTED[defect])
    broken = emulator(pytestconfig, "defect", units(csrc))
    install(broken)
    try:
        assert any(shows(broken, inputs, expected, k) for k in SEEDS)
    finally:
        install(cuda)


def test_what_goes_wrong_is_said(cuda, monkeypatch):
    inputs = sample("lstm", KINDS["plain"], grad=False)
    refuses = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 15)
    address = ctypes.cast(refuses, ctypes.c_void_p).value
    monkeypatch.setattr(stepwise, "gemm", lambda: (address, None))
    with pytest.raises(RuntimeError, match="cuBLAS refuses a product, status 15"):
        cuda_scan.scan(inputs)


def test_why_not(cuda):
    def reason(cell="lstm", dtype=torch.float, **changed):
        problem = problem_of(sample(cell, KINDS["plain"], dtype, grad=False))
        return cuda_scan.why_not(problem._replace(**changed))

    assert reason() is None and reason(H=30000) is None and reason(dtype=torch.double) is None
    assert "2147483647" in reason(H=2**29) and "2147483647" in reason(B=2**31)
    assert reason(B=2**20 - 1, H=2**9) is None
    assert "B * N * G * H = 2147483648 gates" in reason(B=2**20, H=2**9)


def test_float64_has_one_form(cuda, monkeypatch):
    monkeypatch.undo()
    problem = problem_of(sample("lstm", KINDS["plain"], torch.double, grad=False))
    assert "float64" in cuda_scan.plan_of(problem, "double")


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has cuBLAS")
def test_there_is_no_cublas_without_cuda():
    stepwise.gemm.cache_clear()
    address, reason = stepwise.gemm()
    assert address == 0 and "cuBLAS" in reason and torch.__version__ in reason


@pytest.mark.parametrize("kind", STEPWISE_KINDS)
def test_every_cell_has_it(kind, cuda):
    found, _ = library.find(torch.device(DEVICE_NAME))
    for param in CELLS:
        assert stepwise.find(found.functions, *param.values, kind) is not None
