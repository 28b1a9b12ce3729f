"""RNN, LSTM, GRU and their cells equal torch.nn's for every combination of arguments."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from layer_variants import (
    ON,
    PLAIN,
    assert_same,
    close,
    every_choice,
    forced,
    joined,
    leaves,
    plain_variant,
    randn,
    run,
    states,
)
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkit

T, B, I, H = 5, 3, 4, 6  # noqa: E741
SORTED, UNSORTED, FULL = (5, 4, 1), (2, 5, 3), (5, 5, 5)


def combinations():
    """Every combination of a layer's constructor arguments, with a readable id."""
    flags = itertools.product(PLAIN, (1, 2), (True, False), (False, True), (False, True), (0, 2))
    for variant, layers, bias, first, both, projected in flags:
        if projected and len(variant.sizes(H)) == 1:
            continue
        kwargs = {"num_layers": layers, "bias": bias, "batch_first": first, "bidirectional": both}
        words = [variant.cell, f"{layers}x", "nobias" * (not bias), "first" * first, "bi" * both]
        words.append(f"proj{projected}" * bool(projected))
        if projected:
            kwargs["proj_size"] = projected
        yield pytest.param(variant, kwargs, id="-".join(filter(None, words)))


every_combination = pytest.mark.parametrize(("variant", "kwargs"), list(combinations()))


def pair(variant, suffix="", **kwargs):
    """Our layer with torch.nn's weights, and torch.nn's."""
    theirs = variant.twin(I, H, suffix=suffix, **kwargs)
    ours = (variant.one if suffix else variant.layer)(I, H, **kwargs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def padded(module, x, **given):
    return module(x, joined(given))


def packed(lengths):
    def call(module, x, **given):
        enforce = list(lengths) == sorted(lengths, reverse=True)
        batch = pack_padded_sequence(x, torch.tensor(lengths), module.batch_first, enforce)
        output, state = module(batch, joined(given))
        assert torch.equal(output.batch_sizes, batch.batch_sizes)
        for ours, theirs in zip(output[2:], batch[2:], strict=True):
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs)
        return output, state

    return call


# Name: the call, whether it is batched.
FORMS = {
    "padded": (padded, True),
    "unbatched": (padded, False),
    "sorted": (packed(SORTED), True),
    "unsorted": (packed(UNSORTED), True),
    "full": (packed(FULL), True),
}


def layer_cases():
    """Combinations x forms x hx x backends; `make test` runs every seventh, in no step with any."""
    sweep = itertools.product(combinations(), FORMS, ("hx", "nohx"), ON)
    for k, (made, form, given, on) in enumerate(sweep):
        marks = [] if k % 7 == 0 or (on == "reference" and given == "hx") else [pytest.mark.slow]
        words = f"{made.id}-{form}-{given}-{on}"
        yield pytest.param(*made.values, form, given, on, marks=marks, id=words)


@pytest.mark.parametrize(("variant", "kwargs", "form", "given", "on"), list(layer_cases()))
def test_equals_torch(variant, kwargs, form, given, on):
    ours, theirs = pair(variant, **kwargs)
    call, batched = FORMS[form]
    rows = kwargs["num_layers"] * (1 + kwargs["bidirectional"])
    shape = (B, T, I) if kwargs["batch_first"] else (T, B, I)
    tensors = {"x": randn(*(shape if batched else (T, I)))}
    if given == "hx":
        lead = (rows, B) if batched else (rows,)
        tensors |= states(variant, *lead, hidden=H, projected=kwargs.get("proj_size", 0))
    assert_same(run(ours, call, tensors, on), run(theirs, call, tensors))


# T, B, I and H: one step, one row, one feature, one unit, and all of them.
ODD = [(1, 3, 4, 6), (1, 1, 4, 6), (5, 1, 2, 3), (5, 3, 1, 6), (5, 3, 4, 1), (1, 1, 1, 1)]


@every_choice
@pytest.mark.parametrize("sizes", ODD, ids=str)
@plain_variant
def test_odd_sizes(variant, sizes, on):
    steps, rows, features, hidden = sizes
    for bias, both in itertools.product((True, False), repeat=2):
        kwargs = {"bias": bias, "bidirectional": both}
        ours, theirs = (make(features, hidden, **kwargs) for make in (variant.layer, variant.twin))
        tensors = {"x": randn(steps, rows, features)}
        tensors |= states(variant, 1 + both, rows, hidden=hidden)
        found = run(ours, padded, tensors, on)
        assert_same(found, run(theirs, padded, tensors))
        assert len({v.untyped_storage().data_ptr() for v in found[0]}) == len(found[0])


@every_choice
@pytest.mark.parametrize("given", ["hx", "nohx"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@plain_variant
def test_cell_equals_torch(variant, bias, batched, given, on):
    ours, theirs = pair(variant, suffix="Cell", bias=bias)
    lead = (B,) if batched else ()
    tensors = {"x": randn(*lead, I)}
    if given == "hx":
        tensors |= states(variant, *lead, hidden=H)
    assert_same(run(ours, padded, tensors, on), run(theirs, padded, tensors))
    assert repr(ours) == repr(theirs)
    assert (ours.bias_ih is None) == (theirs.bias_ih is None) == (not bias)


@every_combination
def test_module_as_torch(variant, kwargs):
    """state_dict, all_weights and repr."""
    ours, theirs = pair(variant, **kwargs)
    assert repr(ours) == repr(theirs)
    assert ours.extra_repr() == theirs.extra_repr()
    expected = [(k, v.shape, v.dtype) for k, v in theirs.state_dict().items()]
    assert [(k, v.shape, v.dtype) for k, v in ours.state_dict().items()] == expected
    assert [len(row) for row in ours.all_weights] == [len(row) for row in theirs.all_weights]
    for mine, given in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, given, strict=True))
    assert ours.flatten_parameters() is None


@every_combination
def test_initialisation_as_torch(variant, kwargs):
    """The same seed gives the same values, and leaves the generator in the same state."""
    found = []
    for library in (rnnkit, torch.nn):
        torch.manual_seed(3)
        layer = getattr(library, variant.family)(I, H, **variant.options, **kwargs)
        layer.reset_parameters()
        found.append((layer.state_dict(), torch.rand(())))
    (ours, after), (theirs, expected) = found
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert torch.equal(after, expected)


POSITIONAL = {
    "RNN": (2, "relu", False, True, 0.25, True, 0, "cpu", torch.double),
    "LSTM": (2, False, True, 0.25, True, 3, "cpu", torch.double),
    "GRU": (2, False, True, 0.25, True, 0, "cpu", torch.double),
    "RNNCell": (False, "relu", "cpu", torch.double),
    "LSTMCell": (False, "cpu", torch.double),
    "GRUCell": (False, "cpu", torch.double),
}


@pytest.mark.parametrize("name", POSITIONAL)
def test_positional_arguments(name):
    theirs = getattr(torch.nn, name)(I, H, *POSITIONAL[name]).eval()
    ours = getattr(rnnkit, name)(I, H, *POSITIONAL[name]).eval()
    ours.load_state_dict(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    tensors = {"x": randn(B, I) if name.endswith("Cell") else randn(B, T, I)}
    assert_same(run(ours, padded, tensors), run(theirs, padded, tensors))


def test_sizes_from_numpy():
    """torch.nn takes numpy's ints for num_layers and proj_size."""
    (variant,) = [v for v in PLAIN if v.cell == "lstm"]
    layers, projected = np.int64(2), np.int64(3)
    ours, theirs = pair(variant, num_layers=layers, proj_size=projected)
    tensors = {"x": randn(T, B, I)}
    assert_same(run(ours, padded, tensors), run(theirs, padded, tensors))


@every_choice
@plain_variant
def test_dropout_as_torch(variant, on):
    """None in eval; everything between the layers at p = 1."""
    for p, training in ((0.4, False), (1.0, True), (0.0, True)):
        ours, theirs = pair(variant, num_layers=2, dropout=p)
        assert repr(ours) == repr(theirs)
        tensors = {"x": randn(T, B, I)}
        expected = run(theirs.train(training), padded, tensors)
        assert_same(run(ours.train(training), padded, tensors, on), expected)


def test_dropout_warns_as_torch():
    for library in (torch.nn, rnnkit):
        with pytest.warns(UserWarning, match=r"num_layers greater than 1, but got dropout=0.5"):
            library.GRU(I, H, dropout=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            library.GRU(I, H, 2, dropout=0.5)


@pytest.mark.parametrize("dtype", [torch.float, torch.half, torch.bfloat16, torch.double])
@plain_variant
def test_dtype_and_default_dtype(variant, dtype):
    assert {v.dtype for v in variant.layer(I, H, dtype=dtype).parameters()} == {dtype}
    assert {v.dtype for v in variant.one(I, H, dtype=dtype).parameters()} == {dtype}
    assert {v.dtype for v in variant.layer(I, H, dtype=None).parameters()} == {torch.float}


@every_choice
@plain_variant
def test_meta_device(variant, on):
    """Shapes without values: how large models are planned."""
    x = torch.empty(T, B, I, dtype=torch.double, device="meta")
    ours, theirs = (make(I, H, 2, device="meta") for make in (variant.layer, variant.twin))
    with forced(on):
        found, expected = leaves(ours(x)), leaves(theirs(x))
    assert all(v.is_meta for v in (*found, *ours.parameters()))
    assert [(v.shape, v.dtype) for v in found] == [(v.shape, v.dtype) for v in expected]


@plain_variant
def test_from_meta_to_a_device(variant):
    ours = variant.layer(I, H, device="meta").to_empty(device="cpu")
    torch.manual_seed(0)
    ours.reset_parameters()
    torch.manual_seed(0)
    theirs = type(ours)(I, H, **variant.options, dtype=torch.double)
    for name, value in theirs.state_dict().items():
        close(ours.state_dict()[name], value, 0.0, name)
