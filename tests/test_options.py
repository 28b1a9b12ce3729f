"""Heads and layer norm are what their equations say; every option shows and is copied."""

import copy
import pickle

import numpy as np
import pytest
import torch
from layer_loop import definition, layer_call, one_step
from layer_variants import (
    VARIANTS,
    Variant,
    assert_same,
    close,
    every_variant,
    joined,
    randn,
    run,
    states,
)

import rnnkit
from rnnkit import NormOptions

T, B, I, H = 5, 3, 3, 6  # noqa: E741
LENGTHS = torch.tensor([4, 0, 5])
RESETS = torch.zeros(T, B, dtype=torch.bool)
RESETS[[0, 2], 0] = RESETS[:, 1] = RESETS[[2, 3, 4], 2] = True
RAGGED = {"full": (None, None), "both": (LENGTHS, RESETS)}
every_ragged = pytest.mark.parametrize("ragged", RAGGED)
WITHOUT_NORM = [v for v in VARIANTS if "norm" not in v.cell]


def tensors_of(variant, layer, given=True):
    x = {"x": randn(T, B, I)}
    if not given:
        return x
    rows = layer.num_layers * len(layer.reverse)
    return x | states(variant, rows, B, hidden=layer.hidden_size, projected=layer.proj_size)


@every_ragged
@every_variant
def test_equations(variant, ragged):
    """Every variant, in both directions and two layers, with its initial state."""
    layer, asked = variant.layer(I, H, 2, bidirectional=True), RAGGED[ragged]
    tensors = tensors_of(variant, layer)
    expected = run(layer, definition(*asked), tensors)
    assert_same(run(layer, layer_call(*asked), tensors), expected)


# Heads


@pytest.mark.parametrize("given", [True, False], ids=["hx", "nohx"])
@every_variant
def test_heads_by_the_equations(variant, given):
    layer, asked = variant.layer(I, H, 2, bidirectional=True, num_heads=2), RAGGED["both"]
    assert layer.weight_hh_l0.shape == (layer.weight_ih_l0.shape[0], H // 2)
    tensors = tensors_of(variant, layer, given)
    expected = run(layer, definition(*asked), tensors)
    assert_same(run(layer, layer_call(*asked), tensors), expected)


def dense(weight, heads):
    """(G * H, H) of (G * H, H / heads): a row's head is that of its unit, other columns are 0."""
    full = weight.new_zeros(weight.shape[0], H)
    for row, values in enumerate(weight):
        size = H // heads
        head = row % H // size
        full[row, head * size : (head + 1) * size] = values
    return full


def blocks(full, heads):
    """The part of a dense weight's gradient that `dense` was given."""
    size = H // heads
    picked = [row[r % H // size * size :][:size] for r, row in enumerate(full)]
    return torch.stack(picked)


@pytest.mark.parametrize("heads", [2, 3, 6])
@pytest.mark.parametrize("variant", WITHOUT_NORM, ids=lambda v: v.cell)
def test_heads_are_blocks_of_a_dense_layer(variant, heads):
    layer = variant.layer(I, H, 2, bidirectional=True, num_heads=heads)
    plain = variant.layer(I, H, 2, bidirectional=True)
    wide = {k: v for k, v in layer.state_dict().items() if "_hh" in k and "weight" in k}
    plain.load_state_dict(layer.state_dict() | {k: dense(v, heads) for k, v in wide.items()})
    tensors, call = tensors_of(variant, layer), layer_call(LENGTHS, RESETS)
    results, gradients = run(plain, call, tensors)
    gradients |= {name: blocks(gradients[name], heads) for name in wide}
    assert_same(run(layer, call, tensors), (results, gradients))


def own_part(value, head, heads):
    """One head's part of a parameter of rows * H values or rows."""
    return value.unflatten(0, (-1, heads, H // heads))[:, head].flatten(0, 1)


def heads_alone(variant, heads):
    """A call that runs every head of every layer as a layer of its own."""

    def call(module, x, **given):
        both, output, finals = module.bidirectional, x, []
        D = len(module.reverse)
        for k in range(module.num_layers):
            outputs, lasts = [], []
            for head in range(heads):
                alone = variant.layer(output.shape[-1], H // heads, bidirectional=both)
                part = slice(head * H // heads, (head + 1) * H // heads)
                hx = {n: v[k * D : (k + 1) * D, :, part] for n, v in given.items()}
                weights = {
                    name.replace(f"_l{k}", "_l0"): own_part(value, head, heads)
                    for name, value in module.named_parameters()
                    if f"_l{k}" in name
                }
                args = ((output, joined(hx)), {"lengths": LENGTHS, "resets": RESETS})
                found, last = torch.func.functional_call(alone, weights, *args)
                outputs.append(found.unflatten(-1, (D, -1)))
                lasts.append(last if isinstance(last, tuple) else (last,))
            output = torch.cat(outputs, -1).flatten(-2)
            finals.append([torch.cat(v, -1) for v in zip(*lasts, strict=True)])
        return output, tuple(torch.cat(v) for v in zip(*finals, strict=True))

    return call


@every_variant
def test_heads_are_layers_of_their_own(variant):
    """Norms included: each head has its own."""
    layer = variant.layer(I, H, 2, bidirectional=True, num_heads=3)
    tensors = tensors_of(variant, layer)
    expected = run(layer, heads_alone(variant, 3), tensors)
    assert_same(run(layer, layer_call(LENGTHS, RESETS), tensors), expected)


@pytest.mark.parametrize("heads", [1, 2])
@every_variant
def test_single_step(variant, heads):
    """RNNCell, LSTMCell and GRUCell."""
    module = variant.one(I, H, num_heads=heads)
    tensors = {"x": randn(B, I)} | states(variant, B, hidden=H)

    def call(module, x, **given):
        return module(x, joined(given))

    assert_same(run(module, call, tensors), run(module, one_step(), tensors))


# Layer norm

EPS = 1e-3
NORMS = {
    "eps": NormOptions(eps=EPS),
    "nobias": NormOptions(bias=False, eps=EPS),
    "gates": NormOptions(per_gate=True, eps=EPS),
    "carry": NormOptions(carry=True, eps=EPS),
    "all": NormOptions(per_gate=True, carry=True, bias=False, eps=EPS),
}
KINDS = {
    "rnn": ("rnn_tanh_norm", "RNN", {}),
    "lstm": ("lstm_norm", "LSTM", {}),
    "peephole": ("lstm_peephole_norm", "LSTM", {"peephole": True}),
    "gru": ("gru_norm", "GRU", {}),
    "before": ("gru_before_norm", "GRU", {"reset_after": False}),
}


def norm_variants():
    for kind, (cell, family, options) in KINDS.items():
        for name, norm in NORMS.items():
            if (norm.per_gate and kind == "rnn") or (norm.carry and family != "LSTM"):
                continue
            variant = Variant(cell, family, options | {"layer_norm": norm})
            yield pytest.param(variant, id=f"{kind}-{name}")
    norm = NormOptions(per_gate=True, bias=False, eps=EPS)
    yield pytest.param(Variant("gru_norm", "GRU", {"layer_norm": norm}), id="gru-gates-nobias")


every_norm = pytest.mark.parametrize("variant", list(norm_variants()))
every_lstm_norm = pytest.mark.parametrize(
    "variant", [p for p in norm_variants() if p.id.startswith(("lstm", "peephole"))]
)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@every_norm
def test_norm_by_the_equations(variant, bias):
    layer = variant.layer(I, H, 2, bias=bias, bidirectional=True)
    names = [name for name, _ in layer.named_parameters()]
    norm = variant.options["layer_norm"]
    assert any("norm" in n and "bias" in n for n in names) == norm.bias
    assert any(n.startswith("bias_") for n in names) == bias
    tensors = tensors_of(variant, layer)
    expected = run(layer, definition(LENGTHS, RESETS), tensors)
    assert_same(run(layer, layer_call(LENGTHS, RESETS), tensors), expected)


@every_ragged
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@every_lstm_norm
def test_projected_norm_by_the_equations(variant, bias, ragged):
    """The initial h, which has no unprojected form, is normalised as well."""
    layer = variant.layer(I, H, 2, bias=bias, bidirectional=True, proj_size=2)
    tensors, asked = tensors_of(variant, layer), RAGGED[ragged]
    expected = run(layer, definition(*asked), tensors)
    assert_same(run(layer, layer_call(*asked), tensors), expected)


@every_norm
def test_single_step_norm(variant):
    module = variant.one(I, H, num_heads=2)
    tensors = {"x": randn(B, I)} | states(variant, B, hidden=H)

    def call(module, x, **given):
        return module(x, joined(given))

    assert_same(run(module, call, tensors), run(module, one_step(), tensors))


def where_eps_enters():
    for param in norm_variants():
        (variant,) = param.values
        places = {"RNN": ["norm"], "GRU": ["norm_ih", "norm_hh"]}
        for place in places.get(variant.family, ["norm_ih", "norm_hh", "norm_c"]):
            yield pytest.param(variant, place, {}, id=f"{param.id}-{place}")
            if variant.family == "LSTM":
                yield pytest.param(variant, place, {"proj_size": 2}, id=f"{param.id}-{place}-proj")


@pytest.mark.parametrize(("variant", "place", "kwargs"), list(where_eps_enters()))
def test_eps_enters_every_norm(variant, place, kwargs):
    """Were the default taken in any norm, the tests above would see it."""
    layer = variant.layer(I, H, **kwargs)
    tensors = tensors_of(variant, layer)
    with torch.no_grad():
        found = layer_call()(layer, **tensors)[0]
        wrong = definition(eps={place: 1e-5})(layer, **tensors)[0]
        close(found, definition()(layer, **tensors)[0], 1e-12, "output")
    assert (found - wrong).abs().max() > 1e-7


def layer_norm(v, gain, bias=0):
    return (v - v.mean(-1, keepdim=True)) / (
        v.var(-1, correction=0, keepdim=True) + 1e-5
    ).sqrt() * (gain) + bias


def fastrnns(m, x, h, c):
    """LayerNormLSTMCell of torch's benchmarks/fastrnns: norms with biases, LN(c) is carried."""
    gates = layer_norm(x @ m.weight_ih_l0.T, m.norm_ih_weight_l0, m.norm_ih_bias_l0)
    gates = gates + layer_norm(h @ m.weight_hh_l0.T, m.norm_hh_weight_l0, m.norm_hh_bias_l0)
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    c = layer_norm(c, m.norm_c_weight_l0, m.norm_c_bias_l0)
    return torch.sigmoid(o) * torch.tanh(c), c


def haste_lstm(m, x, h, c):
    """Haste's LayerNormLSTM: gains only before the gates, one bias, c is carried as it is."""
    gates = layer_norm(x @ m.weight_ih_l0.T, m.norm_ih_weight_l0)
    gates = gates + layer_norm(h @ m.weight_hh_l0.T, m.norm_hh_weight_l0)
    i, f, g, o = (gates + m.bias_ih_l0 + m.bias_hh_l0).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    seen = layer_norm(c, m.norm_c_weight_l0, m.norm_c_bias_l0)
    return torch.sigmoid(o) * torch.tanh(seen), c


def tfa(m, x, h, c):
    """TensorFlow Addons' LayerNormLSTMCell: eps 1e-3 and one bias, LN(c) is carried."""

    def norm(v, name):
        size, gain, bias = v.shape[-1:], getattr(m, name + "_weight_l0"), name + "_bias_l0"
        return torch.nn.functional.layer_norm(v, size, gain, getattr(m, bias), 1e-3)

    z = norm(x @ m.weight_ih_l0.T, "norm_ih") + norm(h @ m.weight_hh_l0.T, "norm_hh")
    z = z + m.bias_ih_l0 + m.bias_hh_l0
    i, f, g, o = z.chunk(4, -1)
    c = norm(torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g), "norm_c")
    return torch.sigmoid(o) * torch.tanh(c), c


def haste_gru(m, x, h):
    """Haste's LayerNormGRU: gains only, the recurrent bias inside the reset."""
    x = layer_norm(x @ m.weight_ih_l0.T, m.norm_ih_weight_l0) + m.bias_ih_l0
    v = layer_norm(h @ m.weight_hh_l0.T, m.norm_hh_weight_l0) + m.bias_hh_l0
    (x_r, x_z, x_g), (v_r, v_z, v_g) = x.chunk(3, -1), v.chunk(3, -1)
    z, g = torch.sigmoid(x_z + v_z), torch.tanh(x_g + torch.sigmoid(x_r + v_r) * v_g)
    return (z * h + (1 - z) * g,)


# Name: family, arguments, parameters that the other form lacks (they are 0), its cell.
FORMS = {
    "fastrnns": ("LSTM", {"bias": False, "layer_norm": NormOptions(carry=True)}, (), fastrnns),
    "haste-lstm": ("LSTM", {"layer_norm": True}, ("norm_ih_bias", "norm_hh_bias"), haste_lstm),
    "tfa": ("LSTM", {"layer_norm": NormOptions(carry=True, eps=1e-3)}, (), tfa),
    "haste-gru": ("GRU", {"layer_norm": True}, ("norm_ih_bias", "norm_hh_bias"), haste_gru),
    "haste-gru-nobias": ("GRU", {"layer_norm": NormOptions(bias=False)}, (), haste_gru),
}


@pytest.mark.parametrize("form", FORMS)
def test_published_form(form):
    family, kwargs, missing, cell = FORMS[form]
    variant = Variant(family.lower(), family, {})
    layer = variant.layer(I, H, **kwargs)
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if name.startswith(missing or "none"):
                value.zero_()

    def loop(module, x, **given):
        s, outputs = tuple(v[0] for v in given.values()), []
        for x_t in x:
            s = cell(module, x_t, *s)
            outputs.append(s[0])
        return torch.stack(outputs), tuple(v[None] for v in s)

    tensors = tensors_of(variant, layer)
    results, gradients = run(layer, loop, tensors)
    found = run(layer, layer_call(), tensors)
    kept = {k: v for k, v in found[1].items() if not k.startswith(missing or "none")}
    assert_same((found[0], kept), (results, {k: gradients[k] for k in kept}))


@pytest.mark.parametrize("family", ["RNN", "LSTM", "GRU"])
def test_eps_of_any_kind_of_number(family):
    """An int and numpy's numbers too."""
    outputs = []
    for eps in (1.0, 1, np.float64(1)):
        variant = Variant(family.lower(), family, {"layer_norm": NormOptions(eps=eps)})
        outputs.append(variant.layer(I, H)(randn(T, B, I))[0])
    assert all(torch.equal(v, outputs[0]) for v in outputs)


# Representation and copies

NORM = NormOptions(per_gate=True, carry=True, bias=False, eps=0.5)
FULL = {
    "num_layers": 2,
    "batch_first": True,
    "bidirectional": True,
    "layer_norm": NORM,
    "peephole": True,
    "zoneout": (0.1, 0.2),
    "num_heads": 2,
    "forget_bias": 1.5,
    "recurrent_dropout": 0.3,
    "weight_dropout": 0.4,
    "save_memory": 2,
}
SHOWN = (
    "num_layers=2, batch_first=True, bidirectional=True, peephole=True, layer_norm="
    "NormOptions(per_gate=True, carry=True, bias=False, eps=0.5), zoneout=(0.1, 0.2), num_heads=2, "
    "forget_bias=1.5, recurrent_dropout=0.3, weight_dropout=0.4, save_memory=2"
)


def full():
    torch.manual_seed(3)
    return rnnkit.LSTM(I, H, **FULL, dtype=torch.double)


def test_repr():
    assert repr(full()) == f"LSTM({I}, {H}, {SHOWN})"
    gru = rnnkit.GRU(I, H, reset_after=False, layer_norm=True, zoneout=0.1)
    assert repr(gru) == "GRU(3, 6, reset_after=False, layer_norm=True, zoneout=0.1)"
    cell = rnnkit.LSTMCell(I, H, layer_norm=NormOptions(eps=0.5), num_heads=3, forget_bias=0)
    norm = "NormOptions(eps=0.5)"
    assert repr(cell) == f"LSTMCell(3, 6, layer_norm={norm}, num_heads=3, forget_bias=0)"


def from_state_dict(layer):
    other = full()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(layer.state_dict())
    return other


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "state_dict": from_state_dict,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_copy_of_a_layer_with_all_options(training, way):
    def call(module, x):
        torch.manual_seed(5)
        return module(x, return_cell_states=True)

    layer, tensors = full(), {"x": randn(B, T, I)}
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(randn(*parameter.shape))
    other = COPIES[way](layer)
    assert repr(other) == repr(layer)
    expected = run(layer.train(training), call, tensors)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert_same(run(other.train(training), call, tensors), expected, 0.0, 0.0)


def test_parameters_of_a_layer_with_all_options():
    """Their names, in order, and shapes."""
    names = "weight_ih weight_hh bias_ih bias_hh norm_hh_weight weight_ph norm_c_weight"
    found = {k: tuple(v.shape) for k, v in full().named_parameters()}
    assert [k for k in found if k.endswith("l0")] == [
        f"{name}_l0" for name in [*names.split(), "norm_ih_weight"]
    ]
    assert found["weight_hh_l1_reverse"] == (4 * H, H // 2)
    assert found["weight_ph_l0"] == (3 * H,)
    assert found["norm_hh_weight_l0"] == found["norm_ih_weight_l1"] == (4 * H,)
    assert found["norm_c_weight_l1_reverse"] == (H,)
