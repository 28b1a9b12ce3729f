"""No thread of the CUDA kernels touches what another may write at the same time, in whatever order
they run; none reads shared memory that nobody wrote, or touches any that is no tensor's
(tests/cuda/races.h)."""

import ctypes
import gc
import re
import shutil

import pytest
import torch
from conftest import DEVICE_NAME
from cuda_harness import CSRC, WATCHED, emulates, emulator
from problems import Kind, sample
from test_cuda_kernels import (
    PRODUCTS,
    SINGLE,
    cells,
    install,
    on,
    pin,
    precision,
    seed,
    slow,
    with_stubs,
)
from test_cuda_stepwise import WARPS, pin_to_steps
from test_cuda_stepwise import units as stepwise_units

from benchmarks import nvcc
from rnnkit.cuda import library
from rnnkit.cuda import scan as cuda_scan
from rnnkit.cuda.plan import H100, Gpu, Tile, clusters

__all__ = ["precision"]
pytestmark = [
    emulates,
    pytest.mark.skipif(DEVICE_NAME == "cuda", reason="compute-sanitizer finds them there"),
]

# One product, two of them, and norms.
SHOWN = ("lstm", "gru_before", "lstm_norm")
ALL = tuple(param.values[0] for param in cells())
DTYPES = {"half": torch.half, "bfloat16": torch.bfloat16}
# Forms of a block, and how few blocks run at once, so that chunks take turns or do not.
FORMS = {
    "1 L2": (6, (1, "L2")),
    "2 L2": (8, (2, "L2")),
    "1 cluster": (6, (1, "cluster")),
    "2 cluster": (4, (2, "cluster")),
    "4 block": (3, (4, "block")),
    "8 block": (2, (8, "block")),
}
ROWS = {
    "all": Kind((False, True), 1, (3, 0, 2) * 3, True, True, True, sizes={"T": 3, "B": 9, "H": 37}),
    "plain": Kind(sizes={"T": 4, "B": 3, "H": 20}),
    "reversed": Kind((True,), 2, resets=True, sizes={"T": 3, "B": 12, "H": 33}),
}


def watched(found, names):
    """Sources of a library that has these cells only, and whose threads are watched."""
    listed = nvcc.listed()
    lines = {listed[cuda_scan.name_of(name)]: None for name in names}
    few = f"-DRNNKIT_CELLS(CELL)={' '.join(lines)}"
    return [(path, *options, few, WATCHED) for path, *options in found]


@pytest.fixture(autouse=True)
def none_stays():
    yield
    install(None)


def use(emulated):
    """Launches may touch the memory of tensors only."""
    install(emulated)
    functions = library.find(torch.device("cpu"))[0].functions

    def telling(launch):
        def told(*args):
            tell_tensors(functions)
            return launch(*args)

        return told

    for name in ("rnnkit_launch", "rnnkit_stepwise_launch"):
        setattr(functions, name, telling(getattr(functions, name)))


def tell_tensors(functions):
    """Those that there are now."""
    found = [v for v in gc.get_objects() if issubclass(type(v), torch.Tensor)]
    held = [v.untyped_storage() for v in found if v.device.type == "cpu" and v.numel() > 0]
    memory = (ctypes.c_void_p * len(held))(*(v.data_ptr() for v in held))
    sizes = (ctypes.c_size_t * len(held))(*(v.nbytes() for v in held))
    functions.emulation_tensors(memory, sizes, len(held))


LIBRARIES = [
    pytest.param((SINGLE, SHOWN), id=SINGLE),
    *(pytest.param((kind, ALL), id=f"{kind} all", marks=pytest.mark.slow) for kind in PRODUCTS),
]


@pytest.fixture(scope="module", params=LIBRARIES)
def built(request, pytestconfig):
    """A library of one kind of product; that kind, and its cells."""
    kind, names = request.param
    found = watched(with_stubs(CSRC, kind), names)
    return emulator(pytestconfig, f"races_{kind}_{len(names)}", found), kind, names


@pytest.mark.parametrize("rows", [name if name == "all" else slow(name) for name in ROWS])
@pytest.mark.parametrize("form", FORMS)
def test_persistent_kernels(built, monkeypatch, precision, form, rows):
    emulated, kind, names = built
    if not any(has(name, kind, form) for name in names):
        pytest.skip(f"{kind} has no such blocks")
    precision(kind)
    use(emulated)
    check_form(monkeypatch, emulated, form, kind, names, ROWS[rows])


def check_form(monkeypatch, emulated, form, kind, names, rows):
    pin_to(monkeypatch, form)
    for name in names:
        if has(name, kind, form):
            seed(emulated, 0)
            inputs = sample(name, rows, DTYPES.get(kind, torch.float))
            on("cuda", inputs)
            if cuda_scan.keeps(inputs):
                cuda_scan.scan_and_keep(inputs._replace(x=inputs.x.detach().contiguous()))


def check_forms(monkeypatch, emulated):
    use(emulated)
    for form in FORMS:
        check_form(monkeypatch, emulated, form, SINGLE, SHOWN, ROWS["all"])


def pin_to(monkeypatch, form):
    count, blocks = FORMS[form]
    pin(monkeypatch, Gpu(count, 227 * 1024, clusters(16)), blocks)


def has(name, kind, form):
    _, (tiles, via) = FORMS[form]
    if via == "block" and kind != SINGLE:
        return False  # a block by itself multiplies in full precision, whatever is allowed
    return not isinstance(Tile(name, kind, tiles, False, via).room(37, 1, 1, H100), str)


def test_stepwise_kernels(pytestconfig, monkeypatch):
    emulated = emulator(pytestconfig, "races_stepwise", watched(stepwise_units(CSRC), SHOWN))
    check_steps(monkeypatch, emulated)


def check_steps(monkeypatch, emulated):
    use(emulated)
    pin_to_steps(monkeypatch, emulated)
    for name in SHOWN:
        on("cuda", sample(name, WARPS, torch.float))


# Those of the kernels, not those that these are made of.
BARRIER = re.compile(r"\b(?:cluster_)?synchronise(?:_warp)?\(\);")
BARRIERS = [
    (path.name, k)
    for path in sorted((CSRC / "cuda").glob("*.h"))
    if path.name not in ("cluster.h", "device.h", "instructions.h")
    for k in range(len(BARRIER.findall(path.read_text())))
]


@pytest.mark.parametrize(
    ("name", "k"), [v if v == ("exchange.h", 0) else slow(*v) for v in BARRIERS]
)
def test_no_barrier_may_be_missing(monkeypatch, pytestconfig, tmp_path, name, k):
    """The first schedule without it shows a race."""
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    path = csrc / "cuda" / name
    text = path.read_text()
    begin, end = list(BARRIER.finditer(text))[k].span()
    path.write_text(text[:begin] + text[end:])
    steps = name == "row_norm.h"
    sources, check = (stepwise_units, check_steps) if steps else (with_stubs, check_forms)
    emulated = emulator(pytestconfig, f"races_{name}_{k}", watched(sources(csrc), SHOWN))
    with pytest.raises(RuntimeError, match=r"race: |reads what nobody wrote"):
        check(monkeypatch, emulated)
