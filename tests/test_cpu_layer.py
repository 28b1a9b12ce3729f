"""Whole layers and single steps on the CPU kernels, which compute the projection too."""

import copy
import pickle

import pytest
import torch
from test_layer import as_tuple

import rnnkit
from rnnkit.cpu import library, memory

pytestmark = pytest.mark.skipif(
    library.functions()[0] is None, reason=f"no native library: {library.functions()[1]}"
)


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
