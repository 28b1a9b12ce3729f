"""Converted Keras layers and models give what Keras gives: outputs, states, gradients."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import rnnkit

keras = pytest.importorskip("keras", minversion="3")

from rnnkit.keras import from_keras  # noqa: E402
from rnnkit.keras.layers import ACTIVATIONS  # noqa: E402
from rnnkit.keras.modules import KerasRecurrent, SpatialDropout1d, TimeDistributed  # noqa: E402

# Keras reads its own variables in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

L, Input = keras.layers, keras.Input
B, T, C = 3, 7, 4
BOUND = 2e-5  # float32; in float64 Keras's matmul on torch computes in float32, too
LENGTHS = torch.tensor([0, 5, T])
VALID = torch.arange(T) < LENGTHS[:, None]

WHOLE = {"return_sequences": True}
RECURRENT = {
    "rnn": lambda **k: L.SimpleRNN(5, **k),
    "rnn relu": lambda **k: L.SimpleRNN(5, activation="relu", **k),
    "lstm": lambda **k: L.LSTM(5, **k),
    "gru": lambda **k: L.GRU(5, **k),
    "gru reset before": lambda **k: L.GRU(5, reset_after=False, **k),
    "rnn of a cell": lambda **k: L.RNN(L.LSTMCell(5), **k),
}
OPTIONS = {
    "last": {},
    "whole": WHOLE,
    "states": {"return_state": True},
    "whole, states": WHOLE | {"return_state": True},
    "backwards": {"go_backwards": True},
    "whole, backwards, states": WHOLE | {"go_backwards": True, "return_state": True},
}


def both(kind, merge="concat", **options):
    return lambda: L.Bidirectional(RECURRENT[kind](**options), merge_mode=merge)


# All that takes (B, T, C) and, given a mask, uses it.
MASKABLE = {
    f"{kind}, {name}": (lambda kind=kind, options=options: RECURRENT[kind](**options))
    for kind in RECURRENT
    for name, options in OPTIONS.items()
}
MASKABLE |= {
    f"both directions of {kind}, no bias": both(kind, use_bias=False)
    for kind in ("rnn", "lstm", "gru", "gru reset before")
}
MASKABLE |= {
    f"both directions of {kind}, {name}": both(kind, **options)
    for kind in RECURRENT
    for name, options in OPTIONS.items()
    if "go_backwards" not in options
}
MASKABLE |= {
    f"both directions, {merge}, {name}": both("lstm", merge, **options)
    for merge in ("sum", "mul", "ave", None)
    for name, options in OPTIONS.items()
    if "go_backwards" not in options
}
MASKABLE |= {
    "rnn that zeroes padding": lambda: L.LSTM(5, zero_output_for_mask=True, **WHOLE),
    "unrolled": lambda: L.GRU(5, unroll=True),
    "global average": L.GlobalAveragePooling1D,
}
PLAIN = {
    "dense": lambda: L.Dense(5),
    "dense, no bias": lambda: L.Dense(5, use_bias=False),
    "dense, a layer as activation": lambda: L.Dense(5, activation=L.ELU(0.5)),
    "layer norm": L.LayerNormalization,
    "layer norm, axes": lambda: L.LayerNormalization(axis=(1, 2), epsilon=0.1),
    "layer norm, no scale": lambda: L.LayerNormalization(scale=False),
    "layer norm, no center": lambda: L.LayerNormalization(center=False),
    "layer norm, neither": lambda: L.LayerNormalization(scale=False, center=False),
    "depthwise": lambda: L.DepthwiseConv1D(3, depth_multiplier=2),
    "depthwise, same": lambda: L.DepthwiseConv1D(2, 2, "same", activation="relu"),
    "depthwise, dilated": lambda: L.DepthwiseConv1D(2, dilation_rate=3, use_bias=False),
    "relu": L.ReLU,
    "relu, slope": lambda: L.ReLU(negative_slope=0.2),
    "leaky relu": L.LeakyReLU,
    "elu": lambda: L.ELU(0.5),
    "softmax": L.Softmax,
    "linear": lambda: L.Activation("linear"),
    "dropout": lambda: L.Dropout(0.5),
    "spatial dropout": lambda: L.SpatialDropout1D(0.5),
    "identity": L.Identity,
    "masking": L.Masking,
    "flatten": L.Flatten,
    "max": lambda: L.MaxPooling1D(3, strides=2),
    "average": lambda: L.AveragePooling1D(2),
    "global max": L.GlobalMaxPooling1D,
    "time distributed dense": lambda: L.TimeDistributed(L.Dense(5, "tanh")),
    "time distributed norm": lambda: L.TimeDistributed(L.LayerNormalization()),
}
PLAIN |= {f"activation {name}": (lambda name=name: L.Activation(name)) for name in ACTIVATIONS}
PLAIN |= {
    f"conv {padding} {options}": (
        lambda padding=padding, options=options: L.Conv1D(6, padding=padding, **options)
    )
    for padding in ("causal", "valid", "same")
    for options in (
        {"kernel_size": 3},
        {"kernel_size": 2, "dilation_rate": 2, "activation": "relu"},
        {"kernel_size": 4, "strides": 2, "activation": "elu"},
        {"kernel_size": 3, "strides": 3, "groups": 2, "use_bias": False},
    )
}


PLAIN["conv causal, a layer as activation"] = lambda: L.Conv1D(
    4, 2, padding="causal", activation=L.LeakyReLU()
)


def random_weights(layer):
    generator = np.random.default_rng(0)
    for v in layer.weights:
        v.assign(generator.normal(size=v.shape) / 2)
    return layer


def built(make):
    layer = make()
    layer(np.zeros((B, T, C), "float32"))
    return random_weights(layer)


def results(call, x, *args, **options):
    """All outputs of a call, and the gradient of their sum, weighted by random numbers."""
    x = x.clone().requires_grad_()
    found = call(x, *args, **options)
    found = list(found) if isinstance(found, tuple | list) else [found]
    generator = torch.Generator().manual_seed(0)
    weighted = [(v * torch.randn(v.shape, dtype=v.dtype, generator=generator)).sum() for v in found]
    return [*found, torch.autograd.grad(sum(weighted), x)[0]]


def same(found, wanted):
    assert len(found) == len(wanted)
    for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert_close(a, b, atol=BOUND, rtol=0, msg=lambda text, k=k: f"result {k}: {text}")


@pytest.mark.parametrize("name", MASKABLE | PLAIN)
def test_layer(name):
    layer, x = built((MASKABLE | PLAIN)[name]), torch.randn(B, T, C)
    same(results(from_keras(layer), x), results(layer, x))


@pytest.mark.parametrize("name", MASKABLE)
def test_lengths_are_a_mask(name):
    layer, x = built(MASKABLE[name]), torch.randn(B, T, C)
    # The mean of nothing is NaN.
    rows = slice(1, None) if name == "global average" else slice(None)
    found = results(from_keras(layer), x[rows], LENGTHS[rows])
    same(found, results(layer, x[rows], mask=VALID[rows]))


def text_model():
    layers = [
        L.Embedding(11, 4, mask_zero=True, name="embedding"),
        L.SpatialDropout1D(0.2, name="spatial"),
        L.Bidirectional(L.LSTM(5, **WHOLE), name="both"),
        L.LayerNormalization(name="norm"),
        L.GRU(6, name="gru"),
        L.Dense(3, activation="softmax", name="head"),
    ]
    return random_weights(keras.Sequential([Input((T,), dtype="int32"), *layers]))


def series_model():
    layers = [
        L.Masking(-1.0),
        L.GRU(6, **WHOLE),
        L.Dense(5, activation="relu"),
        L.LSTM(4),
        L.RepeatVector(T),
        L.SimpleRNN(5, go_backwards=True, **WHOLE),
        L.Conv1D(6, 2, padding="same"),
        L.MaxPooling1D(2),
        L.GRU(3, **WHOLE),
        L.TimeDistributed(L.Dense(2)),
        L.Flatten(),
    ]
    return random_weights(keras.Sequential([Input((T, C)), *layers]))


def functional_of(model):
    tensor = inputs = Input(model.input_shape[1:], dtype=model.input_dtype)
    for layer in model.layers:
        tensor = layer(tensor)
    return keras.Model(inputs, tensor)


def tokens():
    ids = torch.randint(1, 11, (B, T))
    return torch.where(VALID, ids, 0)


def series():
    return torch.where(VALID[..., None], torch.randn(B, T, C), -1.0)


MODELS = {"text": (text_model, tokens), "series": (series_model, series)}


@pytest.mark.parametrize("form", ["sequential", "functional", "nested"])
@pytest.mark.parametrize("name", MODELS)
def test_model_masks_as_in_keras(name, form):
    make, draw = MODELS[name]
    model, x = make(), draw()
    if form != "sequential":
        model = functional_of(model)
    if form == "nested":
        model = keras.Sequential([Input(model.input_shape[1:], dtype=x.dtype), model])
    module, wanted = from_keras(model), model(x)
    assert_close(module(x), wanted, atol=BOUND, rtol=0)
    assert_close(module(x, LENGTHS), wanted, atol=BOUND, rtol=0)


@pytest.mark.parametrize("file", ["a.keras", "functional.keras", "a.h5"])
@pytest.mark.parametrize("name", MODELS)
def test_file(name, file, tmp_path):
    make, draw = MODELS[name]
    model, x = make(), draw()
    if file.startswith("functional"):
        model = functional_of(model)
    model.save(tmp_path / file)
    assert_close(from_keras(tmp_path / file)(x), model(x), atol=BOUND, rtol=0)


def test_names_and_plain_modules():
    module = from_keras(text_model())
    kinds = [type(part) for part in module]
    assert kinds[3:] == [rnnkit.LayerNorm, KerasRecurrent, nn.Linear, nn.Softmax]
    assert type(module.both.rnn) is rnnkit.LSTM and module.both.rnn.bidirectional
    assert list(dict(module.named_children())) == [
        *("embedding", "spatial", "both", "norm", "gru", "head", "head_activation")
    ]
    assert "gru.rnn.weight_hh_l0" in module.state_dict() and not module.training
    dense = from_keras(built(PLAIN["time distributed dense"]))
    assert type(dense[0]) is nn.Linear
    conv = from_keras(built(lambda: L.Conv1D(4, 2, padding="causal", activation="relu")))
    assert type(conv) is rnnkit.CausalConv1d and conv.activation == "relu"
    x = tokens()
    assert_close(copy.deepcopy(module)(x), module(x))


def test_model_in_a_time_distributed():
    inner = keras.Sequential([Input((T, C)), L.LSTM(5), L.Dense(2)])
    layer = random_weights(keras.Sequential([Input((2, T, C)), L.TimeDistributed(inner)]))
    module, x = from_keras(layer), torch.randn(B, 2, T, C)
    assert type(module[0]) is TimeDistributed
    assert_close(module(x), layer(x), atol=BOUND, rtol=0)


def test_lengths_that_no_layer_sees():
    model = keras.Sequential([Input((T, C)), L.Conv1D(4, 2), L.LSTM(3)])
    with pytest.raises(ValueError, match="lengths: expected None, since they reach no layer"):
        from_keras(model)(torch.randn(B, T, C), LENGTHS)


def test_mask_within_a_row():
    module = from_keras(text_model())
    x = torch.ones(B, T, dtype=torch.long)
    x[1, 2] = 0
    with pytest.raises(ValueError, match=r"embedding: masked steps must follow .* padding="):
        module(x)


def test_padding_may_hold_anything():
    layer = built(lambda: L.Bidirectional(L.GRU(5, **WHOLE)))
    x, module = torch.randn(B, T, C), from_keras(layer)
    spoiled = torch.where(VALID[..., None], x, torch.nan)
    assert_close(module(spoiled, LENGTHS), module(x, LENGTHS), rtol=0, atol=0)


TRAINED = RECURRENT | {name: PLAIN[name] for name in ("dense", "depthwise", "layer norm, no scale")}


@pytest.mark.parametrize("name", TRAINED)
def test_trains_as_in_keras(name):
    """A step of SGD gives the same layer again: each weight has its gradient once."""
    layer, x = built(TRAINED[name]), torch.randn(B, T, C)
    module = from_keras(layer).train()
    module(x).sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    layer(x, training=True).sum().backward()
    with torch.no_grad():
        for v in layer.trainable_weights:
            v.assign(v.value - 0.1 * v.value.grad)
    assert_close(module(x), layer(x), atol=BOUND, rtol=0)


def test_what_is_not_trained():
    model = keras.Sequential([Input((T, C)), L.GRU(3, **WHOLE), L.LSTM(3), L.Dense(2)])
    model.layers[0].trainable = False
    module = from_keras(model)
    trained = [name for name, v in module.named_parameters() if v.requires_grad]
    lstm, head = (layer.name for layer in model.layers[1:])
    weights = [f"{lstm}.rnn.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih")]
    assert trained == [*weights, f"{head}.weight", f"{head}.bias"]
    model.trainable = False
    assert not any(v.requires_grad for v in from_keras(model).parameters())


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtype(dtype):
    # Keras has no orthogonal matrices of 16 bits.
    gru = L.GRU(5, recurrent_initializer="glorot_uniform", dtype=dtype)
    for layer in (gru, L.Conv1D(2, 2, dtype=dtype)):
        layer.build((B, T, C))
        parameters = dict(from_keras(layer).named_parameters())
        assert {v.dtype for v in parameters.values()} == {getattr(torch, dtype)}
        weight = next(iter(parameters.values()))
        wanted = torch.from_numpy(layer.weights[0].numpy().astype("float64"))
        assert_close(weight.double().sum(), wanted.sum(), atol=1e-12, rtol=1e-12)


def test_dropout_in_training():
    layer = built(lambda: L.LSTM(5, dropout=0.5))
    module, x = from_keras(layer), torch.ones(100, T, C)
    same(results(module, x), results(layer, x))
    dropout = module.train()[0]
    assert type(dropout) is SpatialDropout1d
    found = dropout(x)
    assert (found == found[:, :1]).all() and set(found.unique().tolist()) == {0.0, 2.0}
    assert 150 < (found[:, 0] == 0).sum() < 250
    rnn = from_keras(built(lambda: L.SimpleRNN(5, recurrent_dropout=0.25)))
    assert rnn.rnn.recurrent_dropout == 0.25


UNTRAINABLE = {
    "LSTM 'x': recurrent_dropout=0.5 draws a mask for each gate": lambda: L.LSTM(
        5, recurrent_dropout=0.5, name="x"
    ),
    "GRU 'x': dropout=0.2, recurrent_dropout=0.5 draws a mask for each gate": lambda: L.GRU(
        5, dropout=0.2, recurrent_dropout=0.5, name="x"
    ),
    "Bidirectional 'x': dropout=0.5 draws a mask for each direction": lambda: L.Bidirectional(
        L.GRU(5, dropout=0.5), name="x"
    ),
}


@pytest.mark.parametrize("message", UNTRAINABLE)
def test_dropout_that_does_not_train(message):
    layer, x = built(UNTRAINABLE[message]), torch.randn(B, T, C)
    module = from_keras(layer)
    same(results(module, x), results(layer, x))
    with pytest.raises(RuntimeError, match=message):
        module.train()(x)


class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return inputs * 2


class OwnLSTM(keras.layers.LSTM):
    pass


def forked():
    inputs = Input((T, C))
    return keras.Model(inputs, L.Add()([L.LSTM(3)(inputs), L.GRU(3)(inputs)]))


def with_state():
    first, second = Input((T, C)), Input((3,))
    return keras.Model([first, second], L.GRU(3)(first, initial_state=second))


def shared():
    inputs, layer = Input((T, C)), L.Dense(C, name="x")
    return keras.Model(inputs, layer(layer(inputs)))


def with_own_state():
    inputs = Input((T, C))
    state = L.GlobalMaxPooling1D()(inputs)
    return keras.Model(inputs, L.GRU(C, name="x")(inputs, initial_state=state))


def called(**options):
    inputs = Input((T, C))
    return keras.Model(inputs, L.Dropout(0.5, name="x")(inputs, **options))


def masked_by_hand():
    inputs = Input((T, C))
    mask = keras.ops.any(keras.ops.not_equal(inputs, 3.0), -1)
    return keras.Model(inputs, L.LSTM(3, name="x")(inputs, mask=mask))


def two_ways(**options):
    forward, backward = L.GRU(3), L.GRU(3, go_backwards=True, **options)
    return L.Bidirectional(forward, backward_layer=backward)


REFUSED = [
    (Doubled, "Doubled 'x': there is no conversion of this class, only of Activation, Average"),
    (lambda **k: OwnLSTM(3, **k), "OwnLSTM 'x': there is no conversion"),
    (L.BatchNormalization, "BatchNormalization 'x': there is no conversion"),
    (lambda **k: L.LSTM(3, activation="relu", **k), "LSTM 'x': activation must be tanh, got relu"),
    (
        lambda **k: L.GRU(3, recurrent_activation="hard_sigmoid", **k),
        "GRU 'x': recurrent_activation must be sigmoid, got hard_sigmoid",
    ),
    (
        lambda **k: L.SimpleRNN(3, activation="gelu", **k),
        "SimpleRNN 'x': activation must be tanh or relu, got gelu",
    ),
    (
        lambda **k: L.RNN(L.StackedRNNCells([L.GRUCell(3)]), **k),
        "RNN 'x': its cell must be one of SimpleRNNCell, LSTMCell, GRUCell, got StackedRNNCells",
    ),
    (lambda **k: L.LSTM(3, stateful=True, **k), "LSTM 'x': stateful must be False, got True"),
    (
        lambda **k: L.LSTM(3, zero_output_for_mask=True, **k),
        "LSTM 'x': zero_output_for_mask needs return_sequences=True",
    ),
    (
        lambda **k: two_ways(use_bias=False),
        "GRU 'gru.*': its cell differs from the other direction's in use_bias",
    ),
    (
        lambda **k: L.Bidirectional(L.GRU(3, go_backwards=True), backward_layer=L.GRU(3), **k),
        "Bidirectional 'x': go_backwards must be False in its forward layer",
    ),
    (
        lambda **k: L.Conv1D(3, 2, data_format="channels_first", **k),
        "Conv1D 'x': data_format must be 'channels_last', got 'channels_first'",
    ),
    (
        lambda **k: L.Dense(3, activation=lambda v: v, **k),
        "Dense 'x': activation <lambda> is none of keras.activations",
    ),
    (lambda **k: L.Dense(3, "glu", **k), "Dense 'x': activation glu has no module in torch.nn"),
    (lambda **k: L.LayerNormalization(axis=1, **k), "'x': axis must be the last ones of 3, got"),
    (
        lambda **k: L.Dense(3, dtype="mixed_bfloat16", **k),
        "Dense 'x': computes in bfloat16 with weights of float32",
    ),
    (lambda **k: L.Dense(3, lora_rank=2, **k), "Dense 'x': lora_enabled must be False, got True"),
    (
        lambda **k: L.MaxPooling1D(2, padding="same", **k),
        "'x': padding must be 'valid', got 'same'",
    ),
    (lambda **k: L.Softmax(axis=1, **k), "Softmax 'x': axis must be -1, got 1"),
    (lambda **k: L.ReLU(max_value=6, **k), "ReLU 'x': max_value must be None, got 6"),
    (
        lambda **k: L.Dropout(0.5, noise_shape=(B, 1, C), **k),
        r"Dropout 'x': noise_shape must be None, got \(3, 1, 4\)",
    ),
    (
        lambda **k: forked(),
        "Add '.*': in '.*' it is called with 2 tensors and gives 1; expected a chain",
    ),
    (lambda **k: with_state(), "Functional '.*': expected one of its inputs, got 2"),
    (lambda **k: shared(), "Dense 'x': there is another part named 'x'; a layer may occur once"),
    (
        lambda **k: with_own_state(),
        "GRU 'x': in '.*' it is called with 2 tensors, initial_state and gives 1;",
    ),
    (
        lambda **k: called(training=True),
        "Dropout 'x': in '.*' it is called with 1 tensors, training and gives 1;",
    ),
    (lambda **k: masked_by_hand(), "LSTM 'x': in '.*' it is called with a mask of another origin"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(make, message):
    layer = make(name="x")
    if not layer.built:
        layer.build((B, T, C))
    with pytest.raises(ValueError, match=message):
        from_keras(layer)


def test_refused_sources(tmp_path):
    with pytest.raises(ValueError, match="LSTM 'x': has no weights yet"):
        from_keras(L.LSTM(3, name="x"))
    path = tmp_path / "model.weights.h5"
    text_model().save_weights(path)
    with pytest.raises(ValueError, match=r"model.weights.h5 holds weights without layers: build"):
        from_keras(path)
    with pytest.raises(TypeError, match=r"source: expected a Keras 3 layer.* got torch.nn.*LSTM"):
        from_keras(nn.LSTM(3, 4))


def test_rnnkit_alone_imports_no_keras():
    code = "import sys, rnnkit; sys.exit('keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
