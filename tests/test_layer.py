"""Whole layers on every backend of kernels: the projection and the scan are one operation there."""

from functools import partial

import pytest
import torch
from cuda_harness import emulates
from layer_variants import assert_gradients_add_up
from test_cuda_kernels import cuda, precision  # noqa: F401

import rnnkit
from rnnkit.cpu import library
from rnnkit.ops import gradients as around_scan
from rnnkit.ops import layer as whole_layer

no_library = pytest.mark.skipif(
    library.functions()[0] is None, reason=f"no native library: {library.functions()[1]}"
)
BACKENDS = {"cpu": [no_library], "triton": [], "cuda": [emulates]}
I, H = 5, 8  # noqa: E741
LAYERS = {
    "rnn": (rnnkit.RNN, {}),
    "rnn-relu-norm": (rnnkit.RNN, {"nonlinearity": "relu", "layer_norm": True}),
    "lstm": (rnnkit.LSTM, {"bidirectional": True, "num_layers": 2}),
    "lstm-no-bias": (rnnkit.LSTM, {"bias": False}),
    "lstm-norm": (rnnkit.LSTM, {"layer_norm": True, "bidirectional": True}),
    "lstm-norm-gates": (rnnkit.LSTM, {"layer_norm": rnnkit.NormOptions(per_gate=True)}),
    "lstm-peephole": (rnnkit.LSTM, {"peephole": True, "zoneout": (0.3, 0.2)}),
    "lstm-heads": (rnnkit.LSTM, {"num_heads": 2, "recurrent_dropout": 0.3}),
    "lstm-projection": (rnnkit.LSTM, {"proj_size": 3}),
    "gru": (rnnkit.GRU, {"bidirectional": True, "batch_first": True}),
    "gru-norm": (rnnkit.GRU, {"layer_norm": True, "weight_dropout": 0.3}),
    "gru-before": (rnnkit.GRU, {"reset_after": False, "bidirectional": True}),
    "gru-before-norm": (rnnkit.GRU, {"reset_after": False, "layer_norm": True}),
}
WITH_NORMS_OF_INPUT = ("lstm-norm", "lstm-norm-gates", "gru-norm", "gru-before-norm")
# Of the slow interpreter and emulation, make test runs these.
FEW = ("lstm", "lstm-no-bias", "lstm-heads", "gru", "gru-before", "lstm-norm")
CALLS = {"plain": (), "lengths": ("lengths",), "both": ("lengths", "resets")}
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}
DTYPES = {"cpu": list(TOLERANCE), "triton": [torch.float64], "cuda": [torch.float32]}


@pytest.fixture(params=[pytest.param(name, marks=marks) for name, marks in BACKENDS.items()])
def backend(request):
    """Its name; those that run on a GPU are emulated without one."""
    if request.param == "cuda":
        request.getfixturevalue("cuda")
        request.getfixturevalue("precision")("ieee")
    return request.param


def place(backend, device):
    return torch.device("cpu") if backend == "cpu" else device


def build(name, dtype=torch.float64, device="cpu"):
    kind, options = LAYERS[name]
    return kind(I, H, dtype=dtype, device=device, **options)


def call_of(layer, extras, T=6, B=7):
    """A random input and the keywords of a call."""
    like = layer.weight_hh_l0
    x, resets = torch.randn(T, B, I).to(like), torch.rand(T, B, device=like.device) < 0.3
    known = {"lengths": torch.randint(0, T + 1, (B,), device=like.device), "resets": resets}
    if layer.batch_first:
        x, known["resets"] = x.transpose(0, 1), resets.T
    return x, {name: known[name] for name in extras}


def results(layer, x, extras, state=None):
    """Outputs, final states and every gradient, noise and cotangents from fixed seeds."""
    x = x.clone().requires_grad_()
    state = None if state is None else [v.clone().requires_grad_() for v in state]
    hx = state if state is None or len(state) > 1 else state[0]
    torch.manual_seed(1)
    output, final = layer(x, hx, **extras)
    every = [output, *(final if isinstance(final, tuple) else (final,))]
    loss = sum((v * torch.randn_like(v)).sum() for v in every)
    return [*every, *torch.autograd.grad(loss, [x, *layer.parameters(), *(state or ())])]


def problems():
    """Layers, calls and dtypes of every backend."""
    for on, marks in BACKENDS.items():
        for name in LAYERS:
            for extras in CALLS:
                for dtype in DTYPES[on]:
                    rare = on != "cpu" and (name not in FEW or extras == "lengths")
                    more = [pytest.mark.slow] if rare else []
                    yield pytest.param(on, name, extras, dtype, marks=[*marks, *more])


@pytest.mark.parametrize("backend, name, extras, dtype", list(problems()), indirect=["backend"])
def test_layer_equals_the_reference(backend, name, extras, dtype, device):
    layer = build(name, dtype, place(backend, device))
    x, keywords = call_of(layer, CALLS[extras])
    for start in (None, 7):
        shapes = [v.shape for v in as_tuple(layer(x)[1])]
        state = None if start is None else [torch.randn(shape).to(x) for shape in shapes]
        with rnnkit.backend(backend):
            found = results(layer, x, keywords, state)
        with rnnkit.backend("reference"):
            expected = results(layer, x, keywords, state)
        for k, (a, b) in enumerate(zip(found, expected, strict=True)):
            error = (a - b).abs().max() / (1 + b.abs().max())
            assert error < TOLERANCE[dtype], (k, error)


def as_tuple(v):
    return v if isinstance(v, tuple) else (v,)


SLOW = pytest.param("triton", "gru", marks=pytest.mark.slow)
GRADGRAD = [("cpu", v) for v in ("rnn", "lstm", "lstm-norm", "gru", "gru-before-norm")]


@pytest.mark.parametrize(
    "backend, name", [*GRADGRAD, ("triton", "rnn"), SLOW], indirect=["backend"]
)
def test_gradgradcheck(backend, name, device):
    kind, options = LAYERS[name]
    more = {"dtype": torch.float64, "device": place(backend, device)}
    layer = kind(2, 3, **more, **options)
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(3, 2, 2, **more, requires_grad=True)

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))[0]

    values = [v.detach().requires_grad_() for v in values]
    with rnnkit.backend(backend):
        assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)
        assert torch.autograd.gradgradcheck(call, (x, *values), fast_mode=True)


def test_layers_take_the_projection_in(backend, monkeypatch, device):
    """So that the tests above test what they are to test."""
    seen, run = [], whole_layer.layer
    monkeypatch.setattr(
        rnnkit.functional, "layer", lambda whole, *args: seen.append(whole) or run(whole, *args)
    )
    for name in LAYERS:
        layer, before = build(name, DTYPES[backend][0], place(backend, device)), len(seen)
        with rnnkit.backend(backend):
            layer(call_of(layer, ())[0])
        outside = layer.proj_size or (backend != "cpu" and name in WITH_NORMS_OF_INPUT)
        assert len(seen) - before == (0 if outside else layer.num_layers), name


KEPT = ("rnn", "lstm", "lstm-no-bias", "lstm-peephole", "lstm-heads", "gru")


@emulates
def test_backward_multiplies_no_states_again(cuda, monkeypatch, device):  # noqa: F811
    """CUDA's forward leaves in x what the products gave, but before a norm or an inner step."""
    calls, run = [], around_scan.products_again
    monkeypatch.setattr(
        around_scan, "products_again", lambda *given: calls.append(given) or run(*given)
    )
    for name in LAYERS:
        layer, before = build(name, torch.float32, device), len(calls)
        with rnnkit.backend("cuda"):
            layer(call_of(layer, ())[0])[0].sum().backward()
        assert (len(calls) == before) == (name in KEPT), name


FROZEN = {
    "nothing": (),
    "the input": ("input",),
    "input weights": ("weight_ih_l0",),
    "recurrent weights": ("weight_hh_l0",),
    "input biases": ("bias_ih_l0",),
    "recurrent biases": ("bias_hh_l0",),
    "all but the biases": ("input", "weight_ih_l0", "weight_hh_l0"),
    "all but a bias": ("input", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0"),
    "all parameters": ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"),
}


def prepared(layer, x, on, frozen=()):
    """The leaves of a call by name, without gradients, and what runs it forward and backward."""
    leaves = dict(layer.named_parameters()) | {"input": x.clone()}
    for name, v in leaves.items():
        v.grad = None
        v.requires_grad_(name not in frozen)

    def step():
        with rnnkit.backend(on):
            layer(leaves["input"])[0].sin().sum().backward()

    return leaves, step


def gradients(*call):
    leaves, step = prepared(*call)
    step()
    return {name: v.grad for name, v in leaves.items() if v.grad is not None}


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_frozen_arguments_get_no_gradient(backend, name, frozen, device):
    layer = build(name, DTYPES[backend][0], place(backend, device))
    x, frozen = call_of(layer, ())[0], FROZEN[frozen]
    every, found = gradients(layer, x, "reference"), gradients(layer, x, backend, frozen)
    assert found.keys() == every.keys() - set(frozen)
    for key, v in found.items():
        torch.testing.assert_close(v, every[key], msg=key)


def test_gradients_add_up_in_place(backend, device):
    for name in LAYERS if backend == "cpu" else FEW:
        layer = build(name, DTYPES[backend][0], place(backend, device))
        layer.eval()  # without noise
        assert_gradients_add_up(partial(prepared, layer, call_of(layer, ())[0], backend))


def test_final_states_may_be_changed_in_place(backend, device):
    """As torch.nn's, in training too: neither results nor gradients of the others change."""
    for name in (*FEW, "lstm-projection"):
        layer = build(name, DTYPES[backend][0], place(backend, device))
        layer.eval()  # without noise
        x, found = call_of(layer, ())[0].requires_grad_(), []
        for on, change in ((backend, False), (backend, True), ("reference", False)):
            with rnnkit.backend(on):
                output, final = layer(x)
                first, *others = as_tuple(final)
                if change:
                    first.mul_(2)
                # Of several states, the gradient of one arrives alone.
                shown = [others[-1]] if others else [output]
                loss = sum(v.sin().sum() for v in shown)
                sources = [x, *layer.parameters()]
                gradients = torch.autograd.grad(loss, sources, allow_unused=True)
            found.append([output, *others, *gradients])
        for before, after, expected in zip(*found, strict=True):
            assert before is after is None or torch.equal(before, after), name
            torch.testing.assert_close(before, expected, msg=name)


def test_backward_may_run_on_another_backend(device):
    """Which one runs it counts when it runs."""
    layer = build("lstm", torch.float64, device)
    x = call_of(layer, ())[0].requires_grad_()
    with rnnkit.backend("triton"):
        output = layer(x)[0].sum()
    found = torch.autograd.grad(output, [x, *layer.parameters()])
    output = layer(x)[0].sum()
    with rnnkit.backend("reference"), rnnkit.dispatch.recording() as decisions:
        again = torch.autograd.grad(output, [x, *layer.parameters()])
    assert {v.backend for v in decisions} == {"reference"}
    for a, b in zip(found, again, strict=True):
        torch.testing.assert_close(a, b)
    expected = torch.autograd.grad(layer(x)[0].sum(), [x, *layer.parameters()])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_mask_of_another_dtype_is_cast(backend, device):
    """What the operator takes, a layer takes: d in any dtype."""
    dtype, where = DTYPES[backend][0], place(backend, device)
    x, ih, hh = (torch.randn(s, device=where, dtype=dtype) for s in ((3, 2, 5), (32, 5), (32, 8)))
    leaves = [v.requires_grad_() for v in (x, ih, hh)]
    mask = torch.rand(2, 1, 8, device=where) < 0.7
    for kind in (torch.float16, dtype):
        noise = rnnkit.functional.Noise(dropout=mask.to(kind), training=True)
        with rnnkit.backend(backend):
            call = rnnkit.functional.recurrent(
                x, None, [rnnkit.functional.Weights(ih, hh)], "lstm", noise=noise
            )
            found = torch.autograd.grad(call.output.sum(), leaves)
        if kind != dtype:
            first = found
    for a, b in zip(first, found, strict=True):
        torch.testing.assert_close(a, b)


def test_second_backward_equals_the_first(backend, device):
    layer = build("gru", DTYPES[backend][0], place(backend, device))
    x = call_of(layer, ())[0].requires_grad_()
    with rnnkit.backend(backend):
        output = layer(x)[0].sum()
        first, second = (torch.autograd.grad(output, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
