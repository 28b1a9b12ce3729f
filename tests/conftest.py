"""Where tests run, and what every one of them can rely on.

Kernels run in Triton's interpreter on the CPU, or, with RNNKIT_TEST_DEVICE=cuda, compiled on a GPU.
The registry's cells and backends are the parameters: a new cell gets every test by itself, and the
toy cell, registered from outside the package, shows that it does.
"""

import os

DEVICE_NAME = os.environ.get("RNNKIT_TEST_DEVICE", "cpu")
if DEVICE_NAME == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("KERAS_BACKEND", "torch")

import interpreter
import pytest
import torch
import toy_cell
from layer_variants import minor

import rnnkit
import rnnkit.cpu.library
import rnnkit.triton.cells
from rnnkit.triton import fit
from rnnkit.triton import scan as triton_scan

toy_cell.register()
if DEVICE_NAME == "cpu":
    interpreter.hasten()
# Problems here are tiny: on a busy machine a second thread costs more than all of the work.
torch.set_num_threads(1)
# The error model of the tests is that of IEEE arithmetic; TF32 is torch.nn's default on a GPU.
torch.backends.cudnn.allow_tf32 = False

TRITON = sorted(c for c in rnnkit.cells.CELLS if rnnkit.triton.cells.equations(c))
NATIVE = [
    cell
    for cell in sorted(rnnkit.cells.CELLS)
    if DEVICE_NAME == "cpu" and rnnkit.cpu.library.why_no_kernels(cell, torch.float64) is None
]
BACKENDS = {
    "reference": sorted(rnnkit.cells.CELLS),
    "triton": TRITON,
    "stepwise": TRITON,
    "cpu": NATIVE,
}


# One of each form: of two states, of two products, with a norm, and from outside the package.
FORMS = ("lstm", "gru_before", "lstm_norm", "mgu")
# Of those, the ones whose heavy tests run on kernels, too.
HEAVY_FORMS = FORMS[:3]


def repeats(cell, on, heavy, forms):
    """Whether most of what a test shows is shown by another cell, or another form of the scan: step
    by step Triton's kernels compute what they do in one launch.
    """
    if on == "reference":
        return heavy and cell not in FORMS
    if on == "stepwise":
        return heavy or cell not in FORMS or minor(cell)
    return minor(cell) or (heavy and cell not in HEAVY_FORMS[:forms])


def pytest_generate_tests(metafunc):
    """`cell` alone: every cell; `cell` with `on`: every cell on every backend that has it.

    Pairs that repeat others are left to `make test-all`; of a test marked `heavy`, more of them: on
    kernels all but its first `forms` of HEAVY_FORMS.
    """
    names = metafunc.fixturenames
    if "cell" in names and "on" in names:
        mark = metafunc.definition.get_closest_marker("heavy")
        how = mark is not None, mark and mark.kwargs.get("forms")
        pairs = [
            pytest.param(cell, on, marks=[pytest.mark.slow] if repeats(cell, on, *how) else [])
            for on, cells in BACKENDS.items()
            for cell in cells
        ]
        ids = [f"{pair.values[0]}-{pair.values[1]}" for pair in pairs]
        metafunc.parametrize(("cell", "on"), pairs, ids=ids, indirect=["on"])
    elif "cell" in names:
        metafunc.parametrize("cell", BACKENDS["reference"])


@pytest.fixture
def on(request, monkeypatch):
    """Runs the test on one backend; "stepwise" is triton with no room for resident weights."""
    if request.param == "stepwise":

        def no_room(*args, **kwargs):
            return fit.choose_form(*args, **(kwargs | {"limit": 0}))

        monkeypatch.setattr(triton_scan, "choose_form", no_room)
    name = "triton" if request.param == "stepwise" else request.param
    with rnnkit.backend(name):
        yield request.param


@pytest.fixture
def device():
    return torch.device(DEVICE_NAME)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fills new memory with NaN, so that an element which no kernel wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
