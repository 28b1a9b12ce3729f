"""Zoneout, recurrent dropout and weight dropout are what their equations say, given their draws."""

import dataclasses

import pytest
import torch
from layer_loop import Draws, definition, draws_of, layer_call, one_step, recorded
from layer_variants import (
    PLAIN,
    VARIANTS,
    Variant,
    assert_same,
    every_run,
    every_variant,
    forced,
    joined,
    leaves,
    randn,
    run,
    states,
)
from torch.utils.checkpoint import checkpoint

import rnnkit

T, B, I, H = 5, 3, 3, 6  # noqa: E741
LENGTHS = torch.tensor([4, 0, 5])
RESETS = torch.zeros(T, B, dtype=torch.bool)
RESETS[[0, 2], 0] = RESETS[:, 1] = RESETS[[2, 3, 4], 2] = True
RAGGED = {"full": (None, None), "both": (LENGTHS, RESETS)}
every_ragged = pytest.mark.parametrize("ragged", RAGGED)
in_both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def zoneout_cases():
    """Every variant with a rate for h, and those with c with its own, alone and beside h's."""
    for variant in VARIANTS:
        rates = [(0.3, 0.5), (0, 0.4), 0.4] if variant.family == "LSTM" else [0.4]
        for rate in rates:
            yield pytest.param(variant, rate, id=f"{variant.cell}-{rate}")


every_zoneout = pytest.mark.parametrize(("variant", "zoneout"), list(zoneout_cases()))


def tensors_of(variant, layer):
    rows = layer.num_layers * len(layer.reverse)
    hx = states(variant, rows, B, hidden=H, projected=layer.proj_size)
    return {"x": randn(T, B, I)} | hx


def drawn_run(layer, call, tensors, on="reference"):
    """The run of a layer, and what it drew."""
    with recorded() as record:
        found = run(layer, call, tensors, on)
    return found, draws_of(layer, record) if layer.training else None


def assert_defined(layer, tensors, ragged, on="reference", draws_too=None):
    """The layer's results and gradients are its equations', with what it drew; returns that."""
    asked = RAGGED[ragged]
    found, draws = drawn_run(layer, layer_call(*asked), tensors, on)
    assert_same(found, run(layer, definition(*asked, draws=draws), tensors))
    return found, draws


# Zoneout


@in_both_modes
@every_ragged
@every_zoneout
def test_zoneout(variant, zoneout, ragged, training):
    layer = variant.layer(I, H, 2, bidirectional=True, zoneout=zoneout).train(training)
    assert_defined(layer, tensors_of(variant, layer), ragged)


@in_both_modes
@every_zoneout
def test_zoneout_with_heads(variant, zoneout, training):
    layer = variant.layer(I, H, bidirectional=True, zoneout=zoneout, num_heads=2).train(training)
    assert_defined(layer, tensors_of(variant, layer), "both")


@in_both_modes
@every_ragged
def test_zoneout_of_c_with_projection(ragged, training):
    variant = Variant("lstm", "LSTM", {})
    layer = variant.layer(I, H, 2, proj_size=2, bidirectional=True, zoneout=(0, 0.4))
    assert_defined(layer.train(training), tensors_of(variant, layer), ragged)


@every_zoneout
def test_zoneout_of_a_single_step(variant, zoneout):
    """RNNCell, LSTMCell and GRUCell."""
    module = variant.one(I, H, zoneout=zoneout)
    tensors = {"x": randn(B, I)} | states(variant, B, hidden=H)

    def call(module, x, **given):
        return module(x, joined(given))

    with recorded() as record:
        found = run(module.train(), call, tensors)
    given = zoneout if isinstance(zoneout, tuple) else (zoneout,)
    masks = [u.view(B, H) < rate for u, rate in zip(record.rand, given, strict=True)]
    assert any(m.any() and not m.all() for m in masks)
    assert_same(found, run(module, one_step(masks), tensors))
    module.eval()
    assert_same(run(module, call, tensors), run(module, one_step(), tensors))


def frozen(draws):
    """The same draws with the first step's masks at every step: a mistake."""
    return [dataclasses.replace(d, keep=tuple(v[:1].expand_as(v) for v in d.keep)) for d in draws]


def swapped(draws):
    """The same draws with the states' masks exchanged."""
    return [dataclasses.replace(d, keep=d.keep[::-1]) for d in draws]


def one_direction(draws):
    """The same draws with the forward direction's masks for both."""
    return [
        dataclasses.replace(d, keep=tuple(v[:, :, :1].expand_as(v) for v in d.keep)) for d in draws
    ]


def one_layer(draws):
    return [draws[0]] * len(draws)


MISTAKES = {"steps": frozen, "states": swapped, "directions": one_direction, "layers": one_layer}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v.family == "LSTM"], ids=lambda v: v.cell
)
def test_zoneout_draws_anew(variant, mistake):
    """Every step, state, direction and layer has masks of its own: the tests above tell them."""
    layer = variant.layer(I, H, 2, bidirectional=True, zoneout=(0.4, 0.4))
    tensors = tensors_of(variant, layer)
    found, draws = assert_defined(layer, tensors, "full")
    wrong = run(layer, definition(draws=MISTAKES[mistake](draws)), tensors)
    assert (found[0][0] - wrong[0][0]).abs().max() > 1e-3
    for name in ("x", "weight_hh_l0", "weight_ih_l1_reverse"):
        assert (found[1][name] - wrong[1][name]).abs().max() > 1e-3, name


def kept_by(module, x):
    """Which elements of every state kept their old value, seen from the results alone."""
    output, _, *cells = module(x, return_cell_states=module.kind == "lstm")
    return [v[1:] == v[:-1] for v in (output, *cells)]


def assert_rate(kept, rate):
    """The mean of so many independent draws is within five standard deviations."""
    deviation = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(kept.double().mean().item() - rate) < 5 * deviation


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if "relu" not in v.cell], ids=lambda v: v.cell
)
def test_zoneout_rate(variant):
    """Of every state its own; and masks of steps, rows, units and states are independent."""
    rates = (0.2, 0.3) if variant.family == "LSTM" else (0.2,)
    module = variant.layer(I, 16, bidirectional=True, zoneout=rates)
    with torch.no_grad(), forced("reference"):
        masks = kept_by(module, randn(60, 4, I))
    for kept, rate in zip(masks, rates, strict=True):
        assert_rate(kept, rate)
        for dim in range(3):
            pairs = kept.narrow(dim, 1, kept.shape[dim] - 1), kept.narrow(dim, 0, 1)
            assert_rate(pairs[0] & kept.narrow(dim, 0, kept.shape[dim] - 1), rate**2)
        assert_rate(kept[..., :16] & kept[..., 16:], rate**2)
    if len(masks) > 1:
        assert_rate(masks[0] & masks[1], rates[0] * rates[1])


REGULARISED = {
    "zoneout": {"zoneout": 0.4},
    "recurrent_dropout": {"recurrent_dropout": 0.4},
    "weight_dropout": {"weight_dropout": 0.4},
    "all": {"zoneout": 0.4, "recurrent_dropout": 0.4, "weight_dropout": 0.4},
}
# All at once with every variant; each alone where the cell is plain.
KINDS = [(v, kind) for v in VARIANTS for kind in REGULARISED if kind == "all" or v in PLAIN]
every_regulariser = pytest.mark.parametrize(
    ("variant", "kind"), KINDS, ids=lambda v: getattr(v, "cell", v)
)


@every_regulariser
def test_seeds_and_modes(variant, kind):
    """The same with the same seed, another at the next call, and nothing drawn in eval."""
    module, x = variant.layer(I, H, 2, bidirectional=True, **REGULARISED[kind]), randn(T, B, I)

    def outputs(seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        with torch.no_grad(), forced("reference"):
            return module(x)[0]

    first, second = outputs(seed=7), outputs()
    assert not torch.equal(first, second)
    assert torch.equal(outputs(seed=7), first)
    module.eval()
    before = torch.get_rng_state()
    without = outputs()
    assert torch.equal(outputs(), without)
    assert torch.equal(torch.get_rng_state(), before)
    if kind.endswith("dropout"):
        module = variant.layer(I, H, 2, bidirectional=True).eval()
        assert torch.equal(outputs(), without)


@every_regulariser
def test_backward_draws_nothing(variant, kind):
    """The forward's masks serve the backward, whenever it comes."""
    module, x = variant.layer(I, H, 2, **REGULARISED[kind]), randn(T, B, I).requires_grad_()
    gradients = []
    with forced("reference"):
        for disturbed in (False, True):
            torch.manual_seed(3)
            loss = sum(v.sin().sum() for v in leaves(module(x)))
            if disturbed:
                module(x)
                torch.manual_seed(4)
            before = torch.get_rng_state()
            gradients.append(torch.autograd.grad(loss, [x, *module.parameters()]))
            assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@every_regulariser
def test_checkpoint(variant, kind):
    """Recomputed with the same masks."""
    module = variant.layer(I, H, 2, bidirectional=True, **REGULARISED[kind])
    tensors, call = tensors_of(variant, module), layer_call(*RAGGED["both"])

    def directly(module, **given):
        torch.manual_seed(0)
        return call(module, **given)

    def recomputed(module, **given):
        torch.manual_seed(0)
        found = checkpoint(call, module, **given, use_reentrant=False)
        torch.manual_seed(1)
        return found

    assert_same(run(module, recomputed, tensors), run(module, directly, tensors))


# Dropout


@every_ragged
@every_variant
def test_recurrent_dropout(variant, ragged):
    """One mask for a sequence, scaled, on h before its products and nowhere else."""
    layer = variant.layer(I, H, 2, bidirectional=True, recurrent_dropout=0.25)
    _, draws = assert_defined(layer, tensors_of(variant, layer), ragged)
    values = torch.cat([d.d.flatten() for d in draws])
    torch.testing.assert_close(values.unique(), torch.tensor([0, 4 / 3], dtype=torch.double))
    assert_own([d.d[:, k] for d in draws for k in range(2)])


@every_variant
def test_recurrent_dropout_with_heads_and_zoneout(variant):
    more = {"num_heads": 3, "zoneout": 0.3, "weight_dropout": 0.3}
    layer = variant.layer(I, H, 2, bidirectional=True, recurrent_dropout=0.25, **more)
    assert_defined(layer, tensors_of(variant, layer), "both")


def assert_own(masks):
    """No two of these masks are the same."""
    for k, mask in enumerate(masks):
        assert not any(torch.equal(mask, other) for other in masks[:k])


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_recurrent_dropout_rate(rate):
    module = rnnkit.GRU(I, 64, bidirectional=True, recurrent_dropout=rate)
    with recorded() as record:
        module(randn(2, 32, I, dtype=torch.float))
    (mask,) = record.dropout
    assert mask.shape == (32, 2, 64)
    assert_rate(mask == 0, rate)


@every_ragged
@every_run
def test_weight_dropout(variant, on, ragged):
    """One mask for a call, scaled, on weight_hh alone: on torch.nn's kernels too."""
    layer = variant.layer(I, H, 2, bidirectional=True, weight_dropout=0.25)
    _, draws = assert_defined(layer, tensors_of(variant, layer), ragged, on)
    masks = [mask for d in draws for mask in d.weight]
    values = torch.cat([mask.flatten() for mask in masks])
    torch.testing.assert_close(values.round(decimals=9).unique(), torch.tensor([0, 4 / 3]).double())
    assert_rate(values == 0, 0.25)
    assert_own(masks)


def test_weight_dropout_with_projection():
    variant = Variant("lstm", "LSTM", {})
    layer = variant.layer(I, H, 2, proj_size=2, bidirectional=True, weight_dropout=0.3)
    for on in ("default", "reference"):
        assert_defined(layer, tensors_of(variant, layer), "full", on)


def without_draws(draws, name):
    return [dataclasses.replace(d, **{name: getattr(Draws(), name)}) for d in draws]


@pytest.mark.parametrize("name", ["keep", "d", "weight"])
@pytest.mark.parametrize("variant", PLAIN, ids=lambda v: v.cell)
def test_each_regulariser_counts(variant, name):
    """Were one of them left out, the tests above would see it."""
    more = {"zoneout": 0.4, "recurrent_dropout": 0.4, "weight_dropout": 0.4}
    layer = variant.layer(I, H, 2, **more)
    tensors = tensors_of(variant, layer)
    found, draws = assert_defined(layer, tensors, "full")
    if name == "keep":
        never = [torch.zeros_like(d.keep[0]) for d in draws]
        pairs = zip(draws, never, strict=True)
        wrong = [dataclasses.replace(d, keep=(mask,)) for d, mask in pairs]
    else:
        wrong = without_draws(draws, name)
    other = run(layer, definition(draws=wrong), tensors)
    assert (found[0][0] - other[0][0]).abs().max() > 1e-3


def test_packed_draws_as_padded():
    """A packed batch consumes the same random numbers as its padded form."""
    module = rnnkit.LSTM(I, H, 2, recurrent_dropout=0.4, zoneout=0.3, dtype=torch.double)
    x, lengths = randn(T, B, I), torch.tensor([5, 3, 2])
    torch.manual_seed(0)
    padded, _ = module(x, lengths=lengths)
    torch.manual_seed(0)
    packed, _ = module(torch.nn.utils.rnn.pack_padded_sequence(x, lengths))
    unpacked, _ = torch.nn.utils.rnn.pad_packed_sequence(packed)
    assert torch.equal(padded, unpacked)
