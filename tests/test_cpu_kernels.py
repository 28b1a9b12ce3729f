"""The CPU kernels: what no other backend has, such as threads, processes and libraries."""

import ctypes
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from layer_variants import VARIANTS, joined, leaves, randn, states
from layer_variants import assert_same as assert_same_layers
from layer_variants import run as run_layer
from operator_calls import rms
from problems import KINDS, Kind, sample
from test_native import damaged
from test_scan import NAMES, assert_same, row, run
from tiny_library import compiles

import rnnkit
from rnnkit import native
from rnnkit.cpu import launch, library, memory
from rnnkit.native.arguments import Arguments
from rnnkit.native.recipes import cpu as recipe
from rnnkit.ops.scan import BATCH, STATES, scan
from rnnkit.projection import Noise, Weights

ROOT = Path(__file__).parents[1]
CELLS = [c for c in sorted(rnnkit.cells.CELLS) if not library.why_no_kernels(c, torch.float64)]
LAYERS = [v for v in VARIANTS if v.cell in CELLS]
every_cell = pytest.mark.parametrize("name", CELLS)
every_layer = pytest.mark.parametrize("variant", LAYERS, ids=lambda v: v.cell)
main_layer = pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=pytest.mark.slow) if v.minor else v for v in LAYERS],
    ids=lambda v: v.cell,
)

# Large enough for two threads, which take rows, or groups, or columns of the weights; the first has
# more rows than the kernels compute at a time.
EVERYTHING = {"resets": True, "dropout": True, "zoneout": True}
SPLITS = {
    "rows": Kind(lengths=(7, 2) * 25, **EVERYTHING, sizes={"T": 7, "B": 50, "H": 37}),
    "groups": Kind((False, True), 1, (4, 2) * 5, **EVERYTHING, sizes={"T": 4, "B": 10, "H": 37}),
    "columns": Kind(lengths=(2, 0, 3), **EVERYTHING, sizes={"T": 3, "B": 3, "H": 260}),
}

pytestmark = pytest.mark.skipif(
    not library.instruction_sets(), reason=library.functions()[1] or "they are there"
)


@pytest.fixture(autouse=True)
def on_cpu():
    with rnnkit.backend("cpu"):
        yield


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def regions():
    """How many threads the library asked for in each of its parallel regions so far."""
    function = ctypes.CFUNCTYPE(
        ctypes.c_int32, *[ctypes.c_int64] * 3, ctypes.c_void_p, ctypes.c_void_p
    )
    torch_parallel_for, asked = function(native.parallel_for()), []

    @function
    def counted(begin, end, grain, work, context):
        asked.append(end - begin)
        return torch_parallel_for(begin, end, grain, work, context)

    found, _ = library.functions()
    found.rnnkit_start(counted)
    yield asked
    found.rnnkit_start(native.parallel_for())


def assert_identical(found, expected):
    """Bit for bit, of results by name."""
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def by_name(results):
    """What `layer_variants.run` returns, in one dict."""
    return {f"result {k}": v for k, v in enumerate(results[0])} | results[1]


def call(module, x, *, lengths=None, resets=None, **given):
    return module(x, joined(given), lengths=lengths, resets=resets)


@pytest.mark.parametrize("split", SPLITS)
@every_cell
def test_a_scan_is_the_same_on_any_number_of_threads(name, split, regions):
    inputs = sample(name, SPLITS[split], dtype=torch.float32)
    alone = run(inputs, lambda v: scan(*v))
    assert not regions
    with threads(2):
        for _ in range(2):
            assert_identical(run(inputs, lambda v: scan(*v)), alone)
    assert regions == [2] * 4  # each forward and backward


@pytest.mark.parametrize("split", SPLITS)
@every_layer
def test_a_layer_is_the_same_on_any_number_of_threads(variant, split, regions):
    kind = SPLITS[split]
    T, B, H = kind.sizes.values()
    layer = variant.layer(29, H, bidirectional=len(kind.reverse) == 2, dtype=torch.float32)
    given = {"x": randn(T, B, 29), **states(variant, len(kind.reverse), B, hidden=H)}
    given = {k: v.float() for k, v in given.items()}

    def results():
        return by_name(run_layer(layer, call, given, "cpu"))

    alone = results()
    assert not regions
    with threads(2):
        assert_identical(results(), alone)
        assert_identical(results(), alone)
    assert regions == [2] * 4


@pytest.mark.parametrize("kind", SPLITS)
@every_cell
def test_a_row_alone_has_the_same_results_and_gradients(name, kind):
    inputs = sample(name, SPLITS[kind], dtype=torch.float32)
    cotangents = [randn(*v.shape, seed=k).float() for k, v in enumerate(scan(*inputs))]

    def results(inputs, cotangents):
        outputs = scan(*inputs)
        gradients = torch.autograd.grad(outputs, (inputs.x, inputs.s0), cotangents)
        return dict(zip((*STATES, "x", "s0"), (*outputs, *gradients), strict=True))

    with threads(2):
        whole = results(inputs, cotangents)
    for b in (0, 1, inputs.x.shape[1] - 1):
        parts = zip(cotangents, STATES, strict=True)
        found = results(row(inputs, b), [v.narrow(BATCH[k], b, 1) for v, k in parts])
        assert_identical(found, {k: v.narrow(BATCH[k], b, 1) for k, v in whole.items()})


@every_cell
def test_what_forward_keeps_changes_nothing(name):
    """But the time: without it backward computes the products again."""
    inputs = sample(name, SPLITS["groups"], grad=False)
    forward, backward = torch.ops.rnnkit.scan.default, torch.ops.rnnkit.scan_backward.default
    states_without = forward(*inputs, False)[:3]
    *states_with, products, scales = forward(*inputs, True)
    for found, expected in zip(states_with, states_without, strict=True):
        assert torch.equal(found, expected)
    arriving = [randn(*v.shape, seed=k) for k, v in enumerate(states_with)]
    tensors, static = inputs[:-2], inputs[-2:]
    assert products.numel()
    given = (*arriving, *states_with[:2], *tensors)
    with_them = backward(*given, products, scales, *static)
    without = backward(*given, None, None, *static)
    names = [f"d{name}" for name in NAMES]
    assert_same(*(dict(zip(names, v, strict=True)) for v in (without, with_them)), 1e-13)


def test_memory_that_is_used_again_changes_nothing():
    """As it is where nobody fills new memory: with other values of the calls before."""
    layers = [rnnkit.LSTM(40, 64), rnnkit.GRU(40, 64, bidirectional=True), rnnkit.RNN(40, 192)]
    given = [{"x": randn(30, 20, 40, seed=k).float()} for k in range(2)]

    def every():
        """The forwards of all calls before any backward, which is in another order."""
        kept = [(layer, layer(v["x"])[0]) for layer in layers for v in given]
        found = [
            torch.autograd.grad(y.square().sum(), list(layer.parameters()))
            for layer, y in reversed(kept)
        ]
        return [y for _, y in kept] + leaves(found)

    expected = every()
    torch.utils.deterministic.fill_uninitialized_memory = False
    for _ in range(3):
        for a, b in zip(every(), expected, strict=True):
            assert torch.equal(a, b)


def child(function, results):
    torch.set_num_threads(1)  # as the workers of a DataLoader do
    results.put([v.tolist() for v in function()])


def test_a_forked_child_computes_the_same():
    layer = rnnkit.LSTM(5, 37)
    x = randn(6, 14, 5).float()

    def results():
        y, (h, c) = layer(x)
        gradients = torch.autograd.grad(y.sum() + h.sum() + c.sum(), list(layer.parameters()))
        return [y.detach(), *gradients]

    with threads(2):
        expected = [v.tolist() for v in results()]
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=child, args=(results, queue), daemon=True)
        process.start()
        assert queue.get(timeout=60) == expected
        process.join()


class Encoded(torch.utils.data.Dataset):
    """Items that a layer computes."""

    def __init__(self, layer, x):
        self.layer, self.x = layer, x

    def __len__(self):
        return self.x.shape[1]

    def __getitem__(self, k):
        with torch.no_grad():
            return self.layer(self.x[:, k : k + 1])[0][:, 0]


def test_workers_of_a_data_loader_compute_the_same():
    layer, x = rnnkit.GRU(5, 37), randn(6, 8, 5).float()
    with threads(2):
        expected = layer(x)[0].detach()
        loader = torch.utils.data.DataLoader(
            Encoded(layer, x), 2, num_workers=2, multiprocessing_context="fork", timeout=60
        )
        assert torch.equal(torch.cat(list(loader)), expected.transpose(0, 1))


def test_several_python_threads_at_once():
    """Each call has its own threads and memory."""
    problems = [sample(name, SPLITS["rows"], dtype=torch.float32) for name in CELLS[:4]]
    layer, inputs = rnnkit.LSTM(29, 70), [randn(6, 3 + k, 29).float() for k in range(4)]

    def work(k):
        scanned = run(problems[k % 4], lambda v: scan(*v))
        y, _ = layer(inputs[k % 4])
        gradients = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
        return [*scanned.values(), y, *gradients]

    expected = [work(k) for k in range(4)]
    with threads(2), ThreadPoolExecutor(4) as pool:
        for k, found in enumerate(pool.map(work, range(40))):
            for a, b in zip(found, expected[k % 4], strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["rnn_tanh_norm", "gru", "gru_before_norm", "lstm_peephole_norm"])
@pytest.mark.parametrize("instruction_set", recipe.INSTRUCTION_SETS)
def test_every_instruction_set_equals_the_reference(name, instruction_set, monkeypatch):
    names = library.instruction_sets()
    if instruction_set not in names:
        pytest.skip(f"the library has {', '.join(names)}")
    monkeypatch.setattr(library, "instruction_set", names.index(instruction_set))
    for kind in ("rows", "groups"):
        inputs = sample(name, SPLITS[kind])
        found = run(inputs, lambda v: scan(*v))
        with rnnkit.backend("reference"):
            assert_same(found, run(inputs, lambda v: scan(*v)), 1e-10)


@pytest.mark.parametrize("instruction_set", recipe.INSTRUCTION_SETS)
def test_the_instruction_set_is_read_at_every_call(instruction_set, monkeypatch, capsys):
    names = library.instruction_sets()
    if instruction_set not in names:
        pytest.skip(f"the library has {', '.join(names)}")
    layer, cell, x = rnnkit.LSTM(29, 37), rnnkit.LSTMCell(29, 37), randn(5, 3, 29).float()
    asked = []

    def find(name, dtype, chosen):
        asked.append(chosen)
        return kernels(name, dtype, chosen)

    for chosen in (0, names.index(instruction_set)):
        monkeypatch.setattr(library, "instruction_set", chosen)
        kernels = library.kernels
        with monkeypatch.context() as patched, torch.no_grad():
            patched.setattr(library, "kernels", find)
            layer(x)
            cell(x[0])
            assert set(asked) == {chosen}
            asked.clear()
        rnnkit.explain(layer, x)
        assert f"compiled for {names[chosen]}" in capsys.readouterr().out


@main_layer
def test_bfloat16_is_within_its_rounding(variant):
    layer = variant.layer(7, 37, bidirectional=True, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.div_(4)
    wide = variant.layer(7, 37, bidirectional=True, dtype=torch.float32)
    wide.load_state_dict(layer.state_dict())
    given = {"x": randn(5, 6, 7), **states(variant, 2, 6, hidden=37)}
    rounded = {k: v.bfloat16() for k, v in given.items()}
    found = by_name(run_layer(layer, call, rounded, "cpu"))
    exact = {k: v.float() for k, v in rounded.items()}
    expected = by_name(run_layer(wide, call, exact, "reference"))
    assert all(v.dtype == torch.bfloat16 for v in found.values())
    # Sums are in float32. What was rounded, by half an eps at most, are x, the states and dx.
    tolerance = 1.5 * torch.finfo(torch.bfloat16).eps
    for key, value in expected.items():
        assert rms(found[key].float() - value) < tolerance * rms(value), key


def layouts(value):
    """The same values with the dimensions in another order, and as a part of something larger."""
    value = value.detach()
    order = tuple(reversed(range(value.dim())))
    yield value.permute(order).contiguous().permute(order)
    wide = torch.stack([value, torch.ones_like(value)], -1)
    yield wide[..., 0]
    longer = torch.cat([value, value], -1)
    yield longer[..., : value.shape[-1]]


@pytest.mark.parametrize("argument", ["x", "w", "b", "s0", "p", "m", "d", "lengths", "resets"])
@pytest.mark.parametrize("name", ["lstm_peephole", "gru_before_norm"])
def test_any_layout_of_an_argument_of_a_scan(name, argument):
    inputs = sample(name, KINDS["all"], dtype=torch.float32)
    value = getattr(inputs, argument)
    expected = run(inputs, lambda v: scan(*v))
    for other in layouts(value):
        assert other.stride() != value.contiguous().stride() and torch.equal(other, value)
        other.requires_grad_(value.requires_grad)
        found = run(inputs._replace(**{argument: other}), lambda v: scan(*v))
        assert_identical(found, expected)


@pytest.mark.parametrize("name", ["lstm", "gru_before"])
def test_values_that_repeat_along_a_dimension(name):
    """As those of `expand`: a mask for all steps, lengths and resets for all groups."""
    inputs = sample(name, KINDS["all"], dtype=torch.float32)
    repeated = {k: getattr(inputs, k) for k in ("x", "s0", "m", "d", "resets")}
    repeated = {k: v.detach()[:1].expand(v.shape) for k, v in repeated.items()}
    dense = {k: v.contiguous() for k, v in repeated.items()}
    for given in (repeated, dense):
        given |= {k: given[k].requires_grad_() for k in ("x", "s0")}
    found = run(inputs._replace(**repeated), lambda v: scan(*v))
    assert_identical(found, run(inputs._replace(**dense), lambda v: scan(*v)))


@pytest.mark.parametrize("argument", ["x", "s0", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_any_layout_of_an_argument_of_a_layer(argument):
    layer, x, s0 = rnnkit.GRU(5, 7), randn(4, 3, 5).float(), randn(1, 3, 7).float()
    given = {"x": x, "s0": s0}
    expected = by_name(run_layer(layer, call, given, "cpu"))
    value = given.get(argument, getattr(layer, argument, None))
    for other in layouts(value):
        if argument in given:
            x, s0 = (other if k == argument else v for k, v in given.items())
        else:
            setattr(layer, argument, torch.nn.Parameter(other))
        x, s0 = x.requires_grad_(), s0.requires_grad_()
        y, h = layer(x, s0)
        sources = [*layer.parameters(), x, s0]
        cotangents = [randn(*v.shape, seed=50 + k).float() for k, v in enumerate((y, h))]
        # Gradients that come in other layouts, too.
        cotangents = [next(layouts(v)) for v in cotangents]
        gradients = torch.autograd.grad((y, h), sources, cotangents)
        names = [*(k for k, _ in layer.named_parameters()), "x", "s0"]
        found = {"result 0": y, "result 1": h} | dict(zip(names, gradients, strict=True))
        assert_identical(found, expected)


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_weights_that_change_between_steps(name):
    """Also where they are other values, or have another layout, at the same address."""
    cell = getattr(rnnkit, name)(7, 7).double()
    x, state = randn(3, 7), (randn(3, 7, seed=2), randn(3, 7, seed=3))

    def check():
        dtype = cell.weight_ih.dtype
        h, c = (v.to(dtype) for v in state)
        given = x.to(dtype), (h, c) if name == "LSTMCell" else h
        with torch.no_grad():
            found = leaves(cell(*given))
            with rnnkit.backend("reference"):
                expected = leaves(cell(*given))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)

    check()
    with torch.no_grad():
        cell.weight_ih.mul_(2)
    check()
    rows = len(cell.weight_hh)
    cell.weight_hh.data = cell.weight_hh.data.as_strided((rows, 7), (1, rows))
    check()
    cell.float()
    check()


@every_layer
def test_a_second_backward_is_the_same(variant):
    layer = variant.layer(5, 7, bidirectional=True)
    y, state = layer(randn(4, 3, 5))
    loss = y.square().sum() + sum(v.square().sum() for v in leaves(state))
    parameters = list(layer.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def once(layer, x):
    return layer(x)


def on_its_own_output(layer, x):
    return layer(*layer(x))


def carried_on(layer, x):
    return layer(x, layer(x.flip(0))[1])


def on_its_own_weights(layer, x):
    return layer(x * layer.weight_ih_l0.sum())


@pytest.mark.parametrize("use", [once, on_its_own_output, carried_on, on_its_own_weights])
@main_layer
def test_gradients_to_be_differentiated_again(variant, use):
    """The first, the second, and where a layer's input or state comes of its own weights."""
    found = {}
    for backend in ("cpu", "reference"):
        layer = variant.layer(4, 4)
        x = randn(3, 2, 4).requires_grad_()
        sources = [x, *layer.parameters()]
        with rnnkit.backend(backend):
            y, state = use(layer, x)
            loss = y.square().sum() + sum(v.sum() for v in leaves(state))
            first = torch.autograd.grad(loss, sources, create_graph=True)
            second = torch.autograd.grad(sum(v.square().sum() for v in first), sources)
        found[backend] = {f"{k}": v for k, v in enumerate((*first, *second))}
    assert_same(found["cpu"], found["reference"], 1e-10)


@main_layer
def test_nan_in_the_padding_stays_there(variant):
    layer = variant.layer(5, 7, bidirectional=True)
    lengths = torch.tensor([2, 4, 0])
    x = randn(4, 3, 5)
    padding = (torch.arange(4)[:, None] >= lengths)[..., None]
    results = [
        run_layer(
            layer, lambda module, **v: call(module, **v, lengths=lengths), {"x": filled}, "cpu"
        )
        for filled in (x.masked_fill(padding, float("nan")), x)
    ]
    assert_same_layers(*results, 0, 0)


T, B, F, H = 4, 2, 3, 5


def plain_weights(**changed):
    shapes = {"ih": (4 * H, F), "hh": (4 * H, H), "b_ih": (4 * H,), "b_hh": (4 * H,)}
    drawn = {k: randn(*shape, seed=n) for n, (k, shape) in enumerate(shapes.items())}
    return Weights(**(drawn | changed))


@pytest.mark.parametrize(
    "arguments",
    [
        {"state": (randn(1, B - 1, H), randn(1, B - 1, H))},
        {"state": (randn(1, B, H - 1), randn(1, B, H - 1))},
        {"state": (randn(1, B, H),)},
        {"weights": [plain_weights(ih=randn(4 * H, F - 1))]},
        {"weights": [plain_weights(hh=randn(3 * H, H))]},
        {"weights": [plain_weights(b_ih=randn(H))]},
        {"weights": [plain_weights(b_hh=randn(H))]},
        {"lengths": torch.tensor([3])},
        {"lengths": torch.tensor([3.0, 2.0])},
        {"resets": torch.zeros(T - 1, B, dtype=torch.bool)},
        {"resets": torch.zeros(T, B, dtype=torch.int64)},
        {"noise": Noise(dropout=torch.ones(B, 1, H - 1).double())},
        {"reverse": (False, True)},
    ],
    ids=lambda v: "-".join(v),
)
def test_arguments_that_do_not_fit_are_refused(arguments):
    """Nobody else checks a layer without a module, and the kernels read what they are told."""
    given = {"state": None, "weights": [plain_weights()], "cell": "lstm"} | arguments
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        rnnkit.functional.recurrent(randn(T, B, F), **given)


@pytest.mark.parametrize("changed", ["dropout", "b_ih", "b_hh"])
def test_a_dtype_of_its_own_is_converted(changed):
    """As the reference does it."""
    noise = Noise(dropout=torch.rand(B, 1, H).double().round())
    weights = plain_weights()
    if changed == "dropout":
        noise = noise._replace(dropout=noise.dropout.float())
    else:
        weights = weights._replace(**{changed: getattr(weights, changed).float()})

    def result():
        return rnnkit.functional.recurrent(
            randn(T, B, F), None, [weights], "lstm", noise=noise
        ).output

    found = result()
    with rnnkit.backend("reference"):
        torch.testing.assert_close(found, result())


@pytest.mark.parametrize("argument", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_a_weight_on_another_device_is_refused(argument, monkeypatch):
    """As in a module that was moved in part: its address would mean something else."""
    layer = rnnkit.LSTM(F, H)
    value = getattr(layer, argument).detach().to("meta")
    setattr(layer, argument, torch.nn.Parameter(value))
    monkeypatch.setattr(launch, "call", lambda *_: pytest.fail("the kernels were called"))
    with pytest.raises((ValueError, RuntimeError)):
        layer(torch.randn(T, B, F))


def test_memory_is_of_the_cpu_whatever_the_default_device(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    layer, x = rnnkit.LSTM(64, 128), torch.randn(40, 16, 64)
    expected = layer(x)[0]
    with torch.device("meta"):
        block = memory.take(memory.LEAST_BYTES)
        assert block.device == x.device
        assert torch.equal(layer(x)[0], expected)


def test_gradients_of_many_cotangents_at_once():
    """vmap over a backward, as torch.autograd.functional.jacobian(vectorize=True) does it."""
    layer, x = rnnkit.LSTM(F, H).double(), randn(T, B, F)
    y, _ = layer(x)
    cotangents, parameters = randn(3, *y.shape), list(layer.parameters())

    def gradients(cotangents, **how):
        return torch.autograd.grad(y, parameters, cotangents, retain_graph=True, **how)

    each = [gradients(v) for v in cotangents]
    for k, found in enumerate(gradients(cotangents, is_grads_batched=True)):
        torch.testing.assert_close(found, torch.stack([v[k] for v in each]))


def test_the_arguments_are_in_the_order_of_the_library():
    text = (ROOT / "csrc" / "arguments.h").read_text()
    (body,) = re.findall(r"struct Arguments \{(.*?)\n\};", text, re.DOTALL)
    body = re.sub(r"//.*", "", body)
    declared = [
        re.search(r"\w+$", declarator.strip()).group()
        for declaration in body.split(";")
        for declarator in declaration.split(",")
        if declarator.strip()
    ]
    assert declared == list(Arguments._fields)
    assert library.functions()[0].rnnkit_arguments_size() == 8 * len(declared)


SCRIPT = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, rnnkit
    layer, x = rnnkit.LSTM(3, 5), torch.randn(4, 2, 3)
    def results():
        y, (h, c) = layer(x)
        return [y, h, c, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]
    found = results()
    with rnnkit.backend("reference"):
        expected = results()
reason = rnnkit.cpu.library.why_no_kernels("lstm", torch.float32)
error = max(float((a - b).detach().abs().max()) for a, b in zip(found, expected))
said = [str(each.message) for each in caught]
print(json.dumps([rnnkit.__file__, said, reason, error]))
"""


@compiles
@pytest.mark.parametrize("how", ["missing", "noise", "other sources"])
def test_without_a_library_results_are_the_same(how, tmp_path):
    """And where one is there that cannot be used, a warning says why."""
    package, csrc = tmp_path / "rnnkit", tmp_path / "csrc"
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.dylib")
    shutil.copytree(ROOT / "rnnkit", package, ignore=ignore)
    shutil.copytree(ROOT / "csrc", csrc)
    place = package / "native" / recipe.LIBRARY
    if how != "missing":
        damaged(place, how)
    environment = os.environ | {
        "RNNKIT_BUILD": "0",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(tmp_path),
    }
    command = [sys.executable, "-c", SCRIPT]
    said = subprocess.check_output(command, env=environment, cwd=tmp_path, text=True)
    where, warned, reason, error = json.loads(said.splitlines()[-1])
    assert Path(where).parent == package
    assert error < 1e-5
    assert "RNNKIT_BUILD=0" in reason
    about = [text for text in warned if "kernels" in text]
    expected = {"missing": 0, "noise": 1, "other sources": 1}[how]
    assert len(about) == expected
    for text in about:
        assert str(place) in text and (how == "noise" or "it was built from other sources" in text)
