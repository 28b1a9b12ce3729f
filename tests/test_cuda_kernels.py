"""The CUDA kernels equal the reference: on a GPU, or from their unmodified sources in the emulation
(tests/cuda).
"""

import ctypes
import math
import re
import shutil

import pytest
import torch
from conftest import DEVICE_NAME
from cuda_harness import CSRC, EMULATION, emulates, emulator
from layer_variants import minor
from problems import KINDS, LARGER, Kind
from problems import sample as sample_on
from test_scan import assert_same, run

import rnnkit
from benchmarks import steps
from rnnkit import dispatch
from rnnkit.cells import CELLS
from rnnkit.cuda import library, plan
from rnnkit.cuda import scan as cuda_scan
from rnnkit.cuda.plan import Gpu, Tile, clusters
from rnnkit.native.recipes.cuda import KINDS as PRODUCTS
from rnnkit.ops.scan import scan

pytestmark = [] if DEVICE_NAME == "cuda" else [emulates]

SINGLE = "ieee"
SEEDS = range(20)
# How little of a GPU there is: several slices of the batch, or one whose chunks take turns.
GPUS = {name: Gpu(n, 227 * 1024, clusters(n)) for name, n in (("slices", 60), ("chunks", 18))}
SIZES = {
    "blocks": Kind((False, True), 1, (0, 3) * 9, True, sizes={"T": 3, "B": 18, "H": 37}),
    "rows": Kind((False, True), 1, None, True, True, True, sizes={"T": 3, "B": 50, "H": 20}),
    "few": Kind((False, True), 1, (0, 3) * 2, True, True, True, sizes={"T": 3, "B": 4, "H": 70}),
    "long": Kind(lengths=(9, 4, 0, 7, 1), resets=True, sizes={"T": 9, "B": 5, "H": 33}),
}
EVERY = KINDS | LARGER | SIZES


def units(csrc, kinds=PRODUCTS):
    """What is compiled to a library."""
    kernels = [(csrc / "cuda" / "kernels.cu", f"-DRNNKIT_KIND={kind}") for kind in kinds]
    own = [
        (csrc / "cuda" / "library.cu", '-DRNNKIT_SOURCE="test"'),
        (csrc / "cuda" / "stepwise.cu",),
    ]
    return [*own, *kernels]


def lacking(kinds):
    """In place of the kernels of these kinds."""
    each = " ".join(f"NO({kind})" for kind in sorted(kinds))
    return EMULATION / "no_kernels.cu", f"-DRNNKIT_LACKS(NO)={each}"


def install(found):
    """Takes an emulated library for the backend's; None for none."""
    library.install(found and library.Library(found.library._name, "cpu"))
    dispatch.decide.cache_clear()


@pytest.fixture(scope="module")
def cuda(pytestconfig):
    """The emulated library, in use; on a GPU the backend's own, None."""
    if DEVICE_NAME == "cuda":
        yield None
        return
    found = emulator(pytestconfig, "kernels", units(CSRC))
    install(found)
    yield found
    install(None)


SHARED = [
    pytest.param((name, (count, via)), marks=marks, id=f"{name} {count} {via}")
    for name, count, via, marks in (
        ("slices", 1, "L2", []),
        ("chunks", 2, "L2", []),
        ("chunks", 1, "cluster", []),
        ("slices", 2, "L2", [pytest.mark.slow]),
        ("chunks", 1, "L2", [pytest.mark.slow]),
        ("slices", 1, "cluster", [pytest.mark.slow]),
        ("slices", 2, "cluster", [pytest.mark.slow]),
        ("chunks", 2, "cluster", [pytest.mark.slow]),
    )
]
# One block has all units, in the smaller of its two forms where that has them.
ALONE = ((4, "block"), (8, "block"))


def pin(monkeypatch, gpu, *forms):
    """Lets problems be planned for a GPU that has these forms only."""
    monkeypatch.setattr(cuda_scan, "gpu_of", lambda device: gpu.only(*forms))


@pytest.fixture(params=SHARED)
def form(request, monkeypatch):
    """How little of a GPU there is, and what the blocks are that share its units."""
    name, *forms = request.param
    pin(monkeypatch, GPUS[name], *forms)


@pytest.fixture
def alone(monkeypatch):
    pin(monkeypatch, GPUS["slices"], *ALONE)


@pytest.fixture
def precision():
    """Sets how float32 products are rounded."""
    switch = torch.backends.cudnn.rnn
    before = switch.fp32_precision

    def choose(kind):
        if kind in ("tf32", "ieee"):
            switch.fp32_precision = kind

    yield choose
    switch.fp32_precision = before


def cells(exclude=()):
    """Those that the kernels have; what most variants of variants show, others show too."""
    text = (CSRC / "cells" / "cells.h").read_text()
    known = set(re.findall(r'CELL\("([\w ]+)"', text))
    names = [name for name in CELLS if cuda_scan.name_of(name) in known and name not in exclude]
    return [slow(v) if minor(v) else pytest.param(v) for v in names]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def seed(emulated, value):
    if emulated is not None:
        emulated.library.emulation_seed(ctypes.c_uint64(value))


def sample(*args, **kwargs):
    return sample_on(*args, device=torch.device(DEVICE_NAME), **kwargs)


def on(name, inputs):
    with rnnkit.backend(name):
        return run(inputs, lambda v: scan(*v))


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("plain", cells())
def test_equals_the_reference(cuda, form, plain, kind):
    check_equality(sample(plain, EVERY[kind], torch.float32))


UNNORMED = [v for v in cells() if CELLS[v.values[0]].norm is None]


@pytest.mark.parametrize("kind", [name for name, kind in EVERY.items() if kind.sizes["H"] <= 128])
@pytest.mark.parametrize("plain", UNNORMED)
def test_a_block_by_itself_equals_the_reference(cuda, alone, plain, kind):
    check_equality(sample(plain, EVERY[kind], torch.float32))


def check_equality(inputs):
    assert_close(on("cuda", inputs), inputs)


def assert_close(found, inputs):
    """To the same inputs in float64, up to what roundings make of them: a norm over few units may
    enlarge each."""
    exact = in_double(inputs)
    shaken = [in_double(inputs, shake(k)) for k in range(SHAKES)]
    for name, v in exact.items():
        moved = max(largest(other[name] - v) for other in shaken)
        alike = 1e-5 * (1 + largest(v)) + ROUNDINGS * moved
        assert found[name].dtype == inputs.x.dtype
        assert largest(found[name] - v) < alike, name


def shake(k):
    """Moves every number of a tensor, about as far as the next one that float32 has."""
    draw = torch.Generator().manual_seed(k)

    def change(v):
        noise = torch.rand(v.shape, generator=draw, dtype=v.dtype)
        return v * (1 + torch.finfo(torch.float32).eps * (2 * noise - 1).to(v.device))

    return change


def largest(v):
    return v.abs().max().item() if v.numel() else 0.0


# One product, two of them, and norms.
SCHEDULED = ("lstm", "gru", "gru_before", "lstm_norm")


@pytest.mark.parametrize(
    "plain", [v if v.values[0] in SCHEDULED else slow(*v.values) for v in cells()]
)
def test_under_every_schedule(cuda, form, plain):
    """The same, bit for bit, in whatever order threads and blocks run."""
    check_schedules(cuda, sample(plain, SIZES["rows"], torch.float32))


@pytest.mark.parametrize("plain", UNNORMED)
def test_a_block_by_itself_under_every_schedule(cuda, alone, plain):
    check_schedules(cuda, sample(plain, SIZES["few"], torch.float32))


def check_schedules(cuda, inputs):
    expected, first = on("reference", inputs), None
    for k in SEEDS:
        seed(cuda, k)
        found = on("cuda", inputs)
        assert_same(found, expected, 1e-5)
        first = first or found
        assert all(torch.equal(found[name], first[name]) for name in first)


# A rounding turns their slope where it moves them over the kink.
RELUS = [name for name in CELLS if "relu" in name]
# Roundings that a value meets in one step, forward and backward, at most, of the operands.
ROUNDINGS = 6
# How often inputs are moved at random, to see how far that moves results.
SHAKES = 4
EPS = {"half": 2**-10, "bfloat16": 2**-7, "tf32": 2**-10}
DTYPES = {"half": torch.half, "bfloat16": torch.bfloat16, "tf32": torch.float}


@pytest.mark.parametrize("size", ["rows", "blocks"])
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("plain", cells(exclude=RELUS))
def test_rounded_products(cuda, form, precision, plain, kind, size):
    """As far from the same problem in float64 as roundings explain."""
    precision(kind)
    inputs = sample(plain, SIZES[size], DTYPES[kind])
    found, exact = on("cuda", inputs), in_double(inputs)
    bound = EPS[kind] / 2 * ROUNDINGS * math.sqrt(inputs.x.shape[0])
    for name, v in exact.items():
        if v.numel():
            error = (found[name].double() - v).abs().max() / v.abs().max()
            assert error < bound, (name, error, bound)


def in_double(inputs, change=lambda v: v):
    """The same problem on the reference in float64."""
    wide = {k: change(v.detach().double()) for k, v in inputs._asdict().items() if is_float(v)}
    wide = {k: v.requires_grad_(k in ("x", "w", "b", "s0", "p")) for k, v in wide.items()}
    return on("reference", inputs._replace(**wide))


def is_float(v):
    return isinstance(v, torch.Tensor) and v.is_floating_point()


def test_relu_in_half_precision(cuda):
    """A relu whose inputs stay off its kink, where a rounding would turn the slope."""
    inputs = sample("rnn_relu", SIZES["rows"], torch.half)
    x = torch.where(inputs.x > 0, 8 + inputs.x, inputs.x - 8).detach().requires_grad_()
    w = (inputs.w / 16).detach().requires_grad_()
    inputs = inputs._replace(x=x, w=w)
    assert_same(on("cuda", inputs), on("reference", inputs), EPS["half"] * ROUNDINGS)


WEIGHTS = {
    "float": (torch.float32, {"T": 2, "B": 2, "H": 300}, (1, "L2")),
    "half": (torch.half, {"T": 2, "B": 2, "H": 520}, (2, "L2")),
    "float in clusters": (torch.float32, {"T": 2, "B": 2, "H": 300}, (2, "cluster")),
    "of a block by itself": (torch.float32, {"T": 3, "B": 3, "H": 124}, (8, "block")),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_beyond_the_registers(cuda, monkeypatch, name):
    """The rest of them lies in shared memory, forward and backward."""
    dtype, sizes, form = WEIGHTS[name]
    pin(monkeypatch, plan.H100, form)
    inputs = sample("lstm", Kind(sizes=sizes), dtype)
    kind = plan.kind_of(dtype, "ieee")
    for backward in (False, True):
        weights = Tile("lstm", kind, form[0], backward, form[1]).whole
        assert weights.tiles(sizes["H"]) > weights.held
    bound = 1e-5 if dtype == torch.float32 else EPS["half"] * ROUNDINGS
    assert_same(on("cuda", inputs), on("reference", inputs), bound)


@pytest.mark.parametrize("layout", ["permuted", "expanded", "sliced"])
def test_layouts(cuda, layout):
    inputs = sample("gru", SIZES["blocks"], torch.float32)
    x = inputs.x.detach()
    if layout == "expanded":
        x = x[:, :1].expand(x.shape)
    elif layout == "permuted":
        x = x.mT.contiguous().mT
    else:
        x = torch.cat([x, x], 1)[:, : x.shape[1]]
    inputs = inputs._replace(x=x.requires_grad_())
    assert_same(on("cuda", inputs), on("reference", inputs), 1e-5)


def test_a_row_does_not_depend_on_the_batch(cuda):
    inputs = sample("lstm", Kind(sizes={"T": 4, "B": 34, "H": 40}), torch.float32)
    whole = on("cuda", inputs)["output"]
    for b in (0, 17, 33):
        alone = inputs._replace(x=inputs.x[:, b : b + 1], s0=inputs.s0[:, b : b + 1])
        with rnnkit.backend("cuda"):
            assert torch.equal(scan(*alone)[0][:, 0], whole[:, b])


@pytest.mark.parametrize("plain", ["rnn", "gru", "lstm"])
def test_layers(cuda, plain):
    """Two bidirectional layers with lengths, and under autocast's dtype."""
    layer = {"rnn": rnnkit.RNN, "gru": rnnkit.GRU, "lstm": rnnkit.LSTM}[plain](
        5, 20, num_layers=2, bidirectional=True
    )
    layer = layer.to(DEVICE_NAME)
    x, lengths = torch.randn(6, 3, 5).to(DEVICE_NAME), torch.tensor([6, 2, 4])

    def call(name):
        with rnnkit.backend(name):
            y, _ = layer(x, lengths=lengths)
            return [y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]

    torch.testing.assert_close(call("cuda"), call("reference"))


def tiles():
    for cell in [param.values[0] for param in cells()]:
        for kind in PRODUCTS:
            for count, via in plan.FORMS:
                for backward in (False, True):
                    tile = Tile(cell, kind, count, backward, via)
                    if via != "block" or not isinstance(tile.room(16, 1, 1, plan.H100), str):
                        yield tile


def test_the_planner_knows_the_kernels(cuda):
    """Its formulas give what the kernels say of themselves."""
    found, _ = library.find(torch.device(DEVICE_NAME))
    for tile in tiles():
        kernel = found.persistent(cuda_scan.name_of(tile.cell), *tile[1:])
        assert kernel is not None, tile
        assert found.ask("columns", kernel) == tile.columns
        for H in (1, 20, 160, 513, 1024, 2048):
            assert found.ask("pitch", kernel, H) == tile.pitch(H)
            for chunks in (1, 5):
                asked = found.ask("shared_bytes", kernel, H, chunks)
                assert asked == tile.shared_bytes(H, chunks), (tile, H, chunks)


def chosen(defects, *shown):
    """All of them, of which `make test` has those shown: each is compiled."""
    return [v if v in shown else slow(v) for v in defects]


# A defect, by the text that it replaces in a file of csrc/cuda, and what then stands there.
PLANTED = {
    "a missing barrier": (
        (1, "L2"),
        "exchange.h",
        "(flag(chunk)) < all) pause();\n        synchronise_warp();\n",
        "(flag(chunk)) < all) pause();\n",
    ),
    "a wrong epoch": (
        (1, "L2"),
        "exchange.h",
        "unsigned(rounds) * blocks_x()",
        "(rounds - 1u) * blocks_x()",
    ),
    "a tile too few": (
        (1, "L2"),
        "product.h",
        "return (all + WARPS - 1) / WARPS;",
        "return all / WARPS + (all < WARPS);",
    ),
    "one barrier for all rounds": (
        (1, "cluster"),
        "exchange.h",
        "barriers + round % BARRIERS * int(form.chunks) + chunk",
        "barriers + chunk",
    ),
    "a wrong parity": (
        (1, "cluster"),
        "exchange.h",
        "round / BARRIERS % 2",
        "(round / BARRIERS + 1) % 2",
    ),
    "too few bytes expected": (
        (1, "cluster"),
        "exchange.h",
        "COLUMNS * PARTS * (all - (last < BYTES ? last : BYTES))",
        "COLUMNS * PARTS * (all - BYTES - 16)",
    ),
    "one buffer for all steps": (
        (1, "cluster"),
        "exchange.h",
        "(step % 2 * int(form.chunks) + chunk) * COLUMNS",
        "chunk * COLUMNS",
    ),
    "a piece too few": ((1, "cluster"), "exchange.h", "from < last", "from + 16 < last"),
    "a block that does not wait": (
        (4, "block"),
        "exchange.h",
        "DEVICE void arrive(int) const { synchronise(); }",
        "DEVICE void arrive(int) const {}",
    ),
    "a share too few": (
        (4, "block"),
        "rows.h",
        "add_up<1>(total, 0, ",
        "add_up<2>(total, 0, ",
    ),
}


@pytest.mark.skipif(DEVICE_NAME == "cuda", reason="defects are shown by schedules")
@pytest.mark.parametrize(
    "defect",
    chosen(
        PLANTED,
        "a missing barrier",
        "a wrong epoch",
        "a tile too few",
        "a wrong parity",
        "one buffer for all steps",
        "a block that does not wait",
    ),
)
def test_defects_are_found(cuda, monkeypatch, pytestconfig, tmp_path, defect):
    """At least one of the schedules shows a defect; without it none does, as is seen above."""
    form, *change = PLANTED[defect]
    pin(monkeypatch, GPUS["chunks"], form)
    sizes = {"T": 3, "B": 3, "H": 60} if form in ALONE else {"T": 3, "B": 20, "H": 150}
    inputs = sample("lstm", Kind(sizes=sizes), torch.float32, grad=False)
    with rnnkit.backend("reference"):
        expected = scan(*inputs)
    sources = with_stubs(with_defect(tmp_path, "lstm", *change))
    defective = emulator(pytestconfig, defect.replace(" ", "_"), sources)
    install(defective)
    try:
        assert any(shows(defective, inputs, expected, k) for k in SEEDS)
    finally:
        install(cuda)


def with_defect(folder, cell, name, right, wrong):
    """A copy of csrc with one cell, where csrc/cuda/`name` has a defect."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    path, listed = csrc / "cuda" / name, csrc / "cells" / "cells.h"
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    others = re.compile(rf'CELL\("(?!{cell}")[^\\\n]+')
    listed.write_text(others.sub("", listed.read_text()))
    return csrc


def with_stubs(csrc, kind=SINGLE):
    """What is compiled to a library of one kind of product."""
    return [*units(csrc, [kind]), lacking(set(PRODUCTS) - {kind})]


def shows(emulated, inputs, expected, k):
    """Whether a schedule gives another result than is expected, or none at all."""
    seed(emulated, k)
    try:
        with rnnkit.backend("cuda"):
            found = scan(*inputs)
    except RuntimeError:
        return True
    pairs = zip(found, expected, strict=True)
    return not all(torch.allclose(a, b, 1e-4, 1e-5) for a, b in pairs)


def test_the_times_of_steps(cuda, monkeypatch):
    """`benchmarks steps` calls every form there is, and says how long its steps take."""
    monkeypatch.setattr(steps, "LENGTHS", (1, 3))
    monkeypatch.setattr(cuda_scan, "gpu_of", lambda device: plan.H100)
    problem = steps.Problem("lstm", "fp32", 2, 40)
    found = list(steps.rows(problem, torch.device(DEVICE_NAME)))
    pinned = [v["form"] for v in found if " units a block, " in v["form"]]
    assert len(pinned) == 6 and found[-1]["form"] == "triton"
    for row in found:
        assert math.isfinite(row["forward_us"]) and math.isfinite(row["backward_us"])
        assert row["form"] in steps.line(row)
        planned = row["form"] not in ("triton", "cuda, stepwise")
        assert planned == ("forward_model_us" in row), row
