"""Initial values: the forget gate's bias, and a model drawn as Keras draws its layers."""

import math
from dataclasses import replace

import pytest
import torch
from layer_variants import every_variant
from torch import nn

import rnnkit
from rnnkit.cells import CELLS, Parameter
from rnnkit.init import keras_

I, H = 5, 12  # noqa: E741
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def biases(module, suffix):
    return getattr(module, "bias_ih" + suffix), getattr(module, "bias_hh" + suffix)


FORGET = {
    "layer": lambda **kwargs: rnnkit.LSTM(I, H, 2, bidirectional=True, **kwargs),
    "heads": lambda **kwargs: rnnkit.LSTM(I, H, num_heads=3, **kwargs),
    "norm": lambda **kwargs: rnnkit.LSTM(I, H, layer_norm=True, peephole=True, **kwargs),
    "projection": lambda **kwargs: rnnkit.LSTM(I, H, proj_size=2, **kwargs),
    "cell": lambda **kwargs: rnnkit.LSTMCell(I, H, **kwargs),
}


def suffixes(module):
    names = [name for name, _ in module.named_parameters()]
    return [name.removeprefix("bias_ih") for name in names if name.startswith("bias_ih")]


@pytest.mark.parametrize("bias", [1.0, 0, -2.5])
@pytest.mark.parametrize("kind", FORGET)
def test_forget_bias(kind, bias):
    """Both biases of the forget gate add up to it; all else is drawn as without it."""
    torch.manual_seed(0)
    module = FORGET[kind](forget_bias=bias)
    torch.manual_seed(0)
    plain = FORGET[kind]()
    forget = torch.zeros(4 * H, dtype=torch.bool)
    forget[H : 2 * H] = True
    assert suffixes(module)
    for suffix in suffixes(module):
        assert torch.equal(sum(biases(module, suffix))[forget], torch.full((H,), float(bias)))
        for ours, theirs in zip(biases(module, suffix), biases(plain, suffix), strict=True):
            assert torch.equal(ours[~forget], theirs[~forget])
    for name, value in plain.named_parameters():
        if not name.startswith("bias_"):
            assert torch.equal(module.get_parameter(name), value)
    module.reset_parameters()
    assert all((sum(biases(module, s))[forget] == bias).all() for s in suffixes(module))


def test_no_forget_bias_is_torchs():
    torch.manual_seed(0)
    ours = rnnkit.LSTM(I, H).state_dict()
    torch.manual_seed(0)
    assert all(torch.equal(ours[k], v) for k, v in nn.LSTM(I, H).state_dict().items())


# Keras


def assert_glorot(weight):
    """Uniform within sqrt(6 / (fan_in + fan_out)), to five standard deviations of the variance."""
    field = math.prod(weight.shape[2:])
    limit = math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * field))
    variance, n = limit**2 / 3, weight.numel()
    assert weight.abs().max() <= limit
    assert weight.abs().max() > limit * (1 - 12 / n)  # (1 - 12 / n)^n < 1e-5
    # The variance of u^2 is 4/45 limit^4.
    assert abs(weight.square().mean() - variance) < 5 * limit**2 * math.sqrt(4 / 45 / n)
    assert abs(weight.mean()) < 5 * math.sqrt(variance / n)


def assert_orthogonal(weight):
    """The shorter side of the matrix is orthonormal: Keras's kernel is this one transposed."""
    rows, columns = weight.shape
    gram = weight.mT @ weight if rows >= columns else weight @ weight.mT
    torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)


def assert_recurrent(module, forget, heads=1):
    gates = module.weight_ih_l0.shape[0] // H
    for name, value in module.named_parameters():
        if name.startswith("weight_hh"):
            for block in value.view(gates, heads, H // heads, -1).unbind(1):
                assert_orthogonal(block.reshape(-1, value.shape[1]))
        elif name.startswith(("weight_ih", "weight_hr")):
            assert_glorot(value)
        elif name.startswith("norm_") and "weight" in name:
            assert (value == 1).all(), name
        elif name.startswith("bias_ih") and forget is not None:
            assert (value[H : 2 * H] == forget).all(), name
            assert not value[:H].any() and not value[2 * H :].any(), name
        else:
            assert not value.any(), name


@pytest.mark.parametrize("heads", [1, 3])
@every_variant
def test_keras(variant, heads):
    module = variant.layer(40, H, 2, bidirectional=True, num_heads=heads, dtype=torch.float)
    assert keras_(module) is module
    assert_recurrent(module, 1.0 if variant.family == "LSTM" else None, heads)
    assert all(v.requires_grad for v in module.parameters())


def test_keras_heads_differ():
    first, second = keras_(rnnkit.GRU(I, H, num_heads=2)).weight_hh_l0.view(3, 2, -1).unbind(1)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kwargs", [{"proj_size": 3}, {"bias": False}], ids=str)
def test_keras_lstm(kwargs):
    assert_recurrent(keras_(rnnkit.LSTM(40, H, 2, **kwargs)), 1.0)


def test_keras_keeps_the_layers_own_forget_bias():
    assert_recurrent(keras_(rnnkit.LSTM(40, H, forget_bias=0)), 0.0)
    assert_recurrent(keras_(rnnkit.LSTM(40, H, forget_bias=2.5)), 2.5)


class Model(nn.Module):
    """Layers of both libraries, and what keras_ leaves alone."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(8, 16, 3), nn.ReLU(), nn.Linear(30, 20))
        self.theirs = nn.ModuleList([nn.LSTM(40, H, 2), nn.GRU(40, H), nn.RNN(40, H)])
        self.ours = nn.ModuleDict(
            {"lstm": rnnkit.LSTM(40, H), "conv": rnnkit.CausalConv1d(8, 9, 2)}
        )
        self.cells = nn.ModuleList([nn.LSTMCell(I, H), rnnkit.LSTMCell(I, H)])
        self.table, self.scale = nn.Embedding(7, 8), nn.Parameter(torch.randn(4))
        self.head = nn.Linear(20, 1, bias=False)


def test_keras_model():
    model = Model()
    left = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(("table", "scale"))}
    assert keras_(model) is model
    for layer in (model.encoder[0], model.encoder[2], model.ours["conv"], model.head):
        assert_glorot(layer.weight)
        assert layer.bias is None or not layer.bias.any()
    for layer, forget in zip(model.theirs, (1.0, None, None), strict=True):
        assert_recurrent(layer, forget)
    assert_recurrent(model.ours["lstm"], 1.0)
    for cell in model.cells:
        assert_orthogonal(cell.weight_hh)
        assert (cell.bias_ih.view(4, H)[1] == 1).all() and cell.bias_ih.sum() == H
        assert not cell.bias_hh.any()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in left.items())


def test_keras_draws_from_torch():
    """The same with the same seed, and another the next time."""

    def drawn(seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        return [v.clone() for v in keras_(model).parameters()]

    model = Model()
    first, second, again = drawn(3), drawn(), drawn(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[-1], second[-1])


@pytest.mark.parametrize("family", GATES)
def test_keras_in_half_precision(family):
    """No factorisation exists there; keras_ draws in float32 and rounds."""
    module = keras_(getattr(rnnkit, family)(I, H, dtype=torch.bfloat16))
    gram = module.weight_hh_l0.float().mT @ module.weight_hh_l0.float()
    torch.testing.assert_close(gram, torch.eye(H), atol=0.05, rtol=0)


def test_a_cell_says_how_its_parameters_begin(monkeypatch):
    cell = CELLS["lstm_peephole"]
    filled = replace(cell, parameters=(Parameter("weight_ph", rows=3, fill=0.25),))
    monkeypatch.setitem(CELLS, "lstm_peephole", filled)
    assert (rnnkit.LSTM(2, 3, peephole=True).weight_ph_l0 == 0.25).all()
