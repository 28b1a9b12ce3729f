"""Whole layers and single steps on the CPU kernels, which compute the projection too."""

import copy
import pickle

import pytest
import torch

import rnnkit
from rnnkit.cpu import layer as cpu_layer
from rnnkit.cpu import library, memory

pytestmark = pytest.mark.skipif(
    library.functions()[0] is None, reason=f"no native library: {library.functions()[1]}"
)
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
CALLS = {"plain": (), "lengths": ("lengths",), "both": ("lengths", "resets")}
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}


def build(name, dtype=torch.float64):
    kind, options = LAYERS[name]
    return kind(I, H, dtype=dtype, **options)


def call_of(layer, extras, T=6, B=7):
    """A random input and the keywords of a call."""
    dtype = layer.weight_hh_l0.dtype
    x, resets = torch.randn(T, B, I, dtype=dtype), torch.rand(T, B) < 0.3
    known = {"lengths": torch.randint(0, T + 1, (B,)), "resets": resets}
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


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("extras", CALLS)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_the_reference(name, extras, dtype):
    layer = build(name, dtype)
    x, keywords = call_of(layer, CALLS[extras])
    for start in (None, 7):
        shapes = [v.shape for v in as_tuple(layer(x)[1])]
        state = None if start is None else [torch.randn(shape, dtype=dtype) for shape in shapes]
        with rnnkit.backend("cpu"):
            found = results(layer, x, keywords, state)
        with rnnkit.backend("reference"):
            expected = results(layer, x, keywords, state)
        for k, (a, b) in enumerate(zip(found, expected, strict=True)):
            error = (a - b).abs().max() / (1 + b.abs().max())
            assert error < TOLERANCE[dtype], (k, error)


def as_tuple(v):
    return v if isinstance(v, tuple) else (v,)


@pytest.mark.parametrize("name", ["rnn", "lstm", "lstm-norm", "gru", "gru-before-norm"])
def test_gradgradcheck(name):
    kind, options = LAYERS[name]
    layer = kind(2, 3, dtype=torch.float64, **options)
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))[0]

    values = [v.detach().requires_grad_() for v in values]
    with rnnkit.backend("cpu"):
        assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *values), fast_mode=True)


def test_layers_take_the_projection_in(monkeypatch):
    """So that the tests above test what they are to test."""
    seen = []
    run = cpu_layer.forward
    monkeypatch.setattr(cpu_layer, "forward", lambda *args: seen.append(args) or run(*args))
    for name in LAYERS:
        layer, before = build(name), len(seen)
        layer(call_of(layer, ())[0])
        expected = 0 if layer.proj_size else layer.num_layers
        assert len(seen) - before == expected, name


@pytest.mark.parametrize("frozen", ["input", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "all"])
def test_frozen_arguments_get_no_gradient(frozen):
    layer = build("lstm-no-bias" if frozen == "all" else "gru")
    x = call_of(layer, ())[0].requires_grad_(frozen != "input")
    wanted = {k: v for k, v in layer.named_parameters() if frozen not in (k, "all")}
    for name, value in layer.named_parameters():
        value.requires_grad_(name in wanted)
    with rnnkit.backend("cpu"):
        layer(x)[0].square().sum().backward()
    assert (x.grad is None) == (frozen == "input")
    assert all((v.grad is not None) == (k in wanted) for k, v in layer.named_parameters())


def test_second_backward_equals_the_first():
    layer = build("gru")
    x = call_of(layer, ())[0].requires_grad_()
    output = layer(x)[0].sum()
    first, second = (torch.autograd.grad(output, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_memory_is_used_again_and_never_twice_at_once(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    like = torch.empty(0)
    a, b = (memory.empty((1 << 16,), like) for _ in range(2))
    assert a.data_ptr() != b.data_ptr()
    place = a.data_ptr()
    view = a[3:]
    del a
    assert memory.empty((1 << 16,), like).data_ptr() != place, "a view still needs it"
    del view
    assert place in [v.data_ptr() for v in [memory.empty((1 << 16,), like) for _ in range(3)]]


STEPS = {
    "rnn": (rnnkit.RNN, {}),
    "lstm": (rnnkit.LSTM, {"num_layers": 2}),
    "lstm-peephole": (rnnkit.LSTM, {"peephole": True, "bias": False}),
    "gru": (rnnkit.GRU, {}),
    "gru-before": (rnnkit.GRU, {"reset_after": False}),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", STEPS)
@torch.no_grad()
def test_native_steps_equal_the_sequence(name, dtype):
    kind, options = STEPS[name]
    layer = kind(37, 33, dtype=dtype, **options)
    x, state, outputs = torch.randn(4, 3, 37, dtype=dtype), None, []
    for v in x:
        found = layer.native_step(v, state)
        assert found is not None
        outputs.append(found[0])
        state = found[1]
    with rnnkit.backend("reference"):
        expected, final = layer(x)
    tolerance = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(torch.stack(outputs), expected, rtol=0, atol=tolerance)
    for a, b in zip(as_tuple(state), as_tuple(final), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@torch.no_grad()
def test_step_row_does_not_depend_on_its_batch():
    cell = rnnkit.LSTMCell(70, 33)
    x, h, c = torch.randn(9, 70), torch.randn(9, 33), torch.randn(9, 33)
    whole = cell.native_step(x, (h, c), cell._parameters)
    for b in range(9):
        one = slice(b, b + 1)
        alone = cell.native_step(x[one], (h[one], c[one]), cell._parameters)
        assert all(torch.equal(v[one], w) for v, w in zip(whole, alone, strict=True))


@torch.no_grad()
def test_step_sees_weights_that_change():
    cell = rnnkit.GRUCell(4, 3)
    x = torch.randn(2, 4)
    for change in (
        lambda: cell.weight_ih.mul_(2),
        lambda: setattr(cell, "weight_hh", torch.nn.Parameter(torch.randn(9, 3))),
        lambda: setattr(cell.bias_ih, "data", torch.randn(9)),
        lambda: cell.load_state_dict(rnnkit.GRUCell(4, 3).state_dict()),
    ):
        cell(x)
        change()
        with rnnkit.backend("reference"):
            expected = cell(x)
        torch.testing.assert_close(cell(x), expected)


@torch.no_grad()
def test_step_leaves_what_it_cannot_do_to_the_general_way():
    cell, x = rnnkit.LSTMCell(4, 3), torch.randn(2, 4)
    native = lambda *args: cell.native_step(*args, cell._parameters)  # noqa: E731
    assert native(x, None) is not None
    assert native(x.T.contiguous().T, None) is None
    assert native(x.double(), None) is None
    assert native(x[:, :3], None) is None
    assert native(x[0], None) is None
    assert native(x, (torch.zeros(2, 3),)) is None
    assert native(x, (torch.zeros(2, 3), torch.zeros(3, 3))) is None
    with torch.enable_grad():
        assert native(x, None) is None
    with rnnkit.backend("reference"):
        assert native(x, None) is None
    with rnnkit.dispatch.recording():
        assert native(x, None) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert native(x, None) is None
    seen = []
    torch.func.vmap(lambda v: seen.append(native(v, None)) or v)(torch.randn(5, 2, 4))
    assert seen == [None]
    assert rnnkit.LSTMCell(4, 3, zoneout=0.5).native_step is None
    assert rnnkit.LSTMCell(4, 3, layer_norm=True).native_step is None


@torch.no_grad()
def test_layers_with_steps_are_copied_and_pickled():
    layer, x = rnnkit.LSTM(4, 3), torch.randn(2, 4)
    layer.step(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        other.weight_hh_l0.mul_(3)
        with rnnkit.backend("reference"):
            expected = other.step(x, (torch.ones(1, 2, 3), torch.ones(1, 2, 3)))[0]
        found = other.step(x, (torch.ones(1, 2, 3), torch.ones(1, 2, 3)))[0]
        torch.testing.assert_close(found, expected)
