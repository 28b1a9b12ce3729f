"""Autocast, low precision and dropout of the layers."""

import math

import pytest
import torch
from layer_variants import (
    VARIANTS,
    every_choice,
    every_run,
    forced,
    joined,
    leaves,
    randn,
    run,
    states,
)

import rnnkit

T, B, I, H = 24, 3, 4, 8  # noqa: E741
LOW = [torch.float, torch.half, torch.bfloat16]
# Roundings that a value meets in one step: input, products, gates, state; in backward as many.
ROUNDINGS = 4
# A norm adds mean, difference, scale and gain; over few units, its spread may vanish and enlarge
# all of them, so it gets more.
NORM_ROUNDINGS, NORM_UNITS = 8, 64


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def call(module, x, **given):
    return module(x, joined(given))


def units(variant):
    return NORM_UNITS if "norm" in variant.cell else H


def tensors_of(variant, dtype, rows=1):
    tensors = {"x": randn(T, B, I)} | states(variant, rows, B, hidden=units(variant))
    return {name: value.to(dtype) for name, value in tensors.items()}


def worst(found, expected):
    """The largest error of each value, relative to the largest of its tensor."""
    errors = {}
    results = zip(found[0], expected[0], strict=True)
    pairs = {f"result {k}": pair for k, pair in enumerate(results)}
    pairs |= {f"gradient of {k}": (found[1][k], v) for k, v in expected[1].items()}
    for name, (a, b) in pairs.items():
        errors[name] = ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()
    return errors


def bound(dtype, added=ROUNDINGS):
    """Independent roundings of size eps / 2, of which each step adds some."""
    return torch.finfo(dtype).eps / 2 * math.sqrt(T) * added


def small(variant, dtype, **kwargs):
    """A layer of moderate weights, a relu kept off its kink, where a rounding turns the slope."""
    layer = variant.layer(I, units(variant), dtype=dtype, bidirectional=True, **kwargs)
    relu = "relu" in variant.cell
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.div_(8 if relu else 2)
            if relu and name.startswith("norm_bias" if layer.layer_norm else "bias_ih"):
                parameter[0::2], parameter[1::2] = 3, -3
            elif layer.layer_norm and name.startswith("norm_"):
                parameter.fill_(0.0 if "bias" in name else 0.5)
    return layer


@pytest.mark.parametrize("dtype", LOW, ids=name_of)
@every_run
def test_low_precision(variant, dtype, on):
    """As far from the same weights and inputs in float64 as roundings explain."""
    module, exact = small(variant, dtype), small(variant, torch.double)
    exact.load_state_dict(module.state_dict())
    tensors = tensors_of(variant, dtype, rows=2)
    expected = run(exact, call, {k: v.double() for k, v in tensors.items()}, "reference")
    found = run(module, call, tensors, on)
    assert {v.dtype for v in (*found[0], *found[1].values())} == {dtype}
    errors = worst(found, expected)
    added = NORM_ROUNDINGS if "norm" in variant.cell else ROUNDINGS
    assert max(errors.values()) < bound(dtype, added), errors


def autocast_cases():
    for variant in VARIANTS:
        yield pytest.param(variant.layer, variant, (1, B), (T, B, I), id=variant.cell)
        yield pytest.param(variant.one, variant, (B,), (B, I), id=f"{variant.cell}-cell")


@every_choice
@pytest.mark.parametrize("given", [True, False], ids=["hx", "nohx"])
@pytest.mark.parametrize(("make", "variant", "lead", "shape"), list(autocast_cases()))
def test_autocast(make, variant, lead, shape, given, on):
    """All results in bfloat16, as torch.nn on CUDA; every gradient in its own tensor's dtype."""
    module, tensors = make(I, H, dtype=torch.float), {"x": randn(*shape, dtype=torch.float)}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.div_(2)
    if given:
        s = states(variant, *lead, hidden=H)
        tensors |= {name: value.float() for name, value in s.items()}

    def casting(module, x, **hx):
        with torch.autocast("cpu", torch.bfloat16):
            return call(module, x, **hx)

    results, gradients = run(module, casting, tensors, on)
    assert {v.dtype for v in results} == {torch.bfloat16}
    assert {v.dtype for v in gradients.values()} == {torch.float}
    expected = run(module, call, tensors, on)[0]
    errors = worst((results, {}), (expected, {}))
    assert max(errors.values()) < bound(torch.bfloat16), errors


def test_autocast_takes_mixed_arguments():
    """Under autocast, dtypes need not agree, in any of the layer's arguments."""
    module = torch.nn.ModuleList(v.layer(I, H, dtype=torch.float) for v in VARIANTS)
    for variant, layer in zip(VARIANTS, module, strict=True):
        s = tuple(states(variant, 1, B, hidden=H).values())
        x = randn(T, B, I, dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            results = leaves(layer(x, s if len(s) > 1 else s[0]))
        assert {v.dtype for v in results} == {torch.bfloat16}, variant.cell


def transparent(dropout):
    """A relu layer over tanh-like values whose second layer shows what dropout let through."""
    (variant,) = [v for v in VARIANTS if v.cell == "rnn_relu"]
    layer = variant.layer(I, H, 2, dropout=dropout)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith("l1"):
                torch.nn.init.zeros_(parameter)
        layer.weight_ih_l1.copy_(torch.eye(H))
    return layer


@every_choice
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_between_layers(p, on):
    """Elements are zeroed independently with probability p, the others grow by 1 / (1 - p)."""
    layer, x = transparent(p), randn(T, 64, I)
    torch.manual_seed(1)
    with forced(on), torch.no_grad():
        whole = layer.eval()(x)[0]
        dropped = layer.train()(x)[0]
        assert not torch.equal(layer(x)[0], dropped)
        torch.manual_seed(1)
        assert torch.equal(layer(x)[0], dropped)
    alive = whole > 0
    kept = dropped[alive] > 0
    torch.testing.assert_close(dropped[alive][kept], whole[alive][kept] / (1 - p))
    assert not dropped[~alive].any()
    # Five standard deviations of a binomial's share.
    spread = 5 * math.sqrt(p * (1 - p) / alive.sum().item())
    assert abs((~kept).double().mean().item() - p) < spread
    steps = (dropped == 0) & alive
    assert (steps[1:] != steps[:-1]).any(), "the same mask at every step"


@every_run
def test_dropout_only_between_layers(variant, on):
    """None after the last layer, none in eval, none with a single layer."""
    with pytest.warns(UserWarning, match="dropout"):
        single = variant.layer(I, H, dropout=0.5)
    double, plain = variant.layer(I, H, 2, dropout=0.9), variant.layer(I, H, 2)
    x = randn(T, B, I)
    with forced(on), torch.no_grad():
        assert torch.equal(single.train()(x)[0], variant.layer(I, H)(x)[0])
        assert torch.equal(double.eval()(x)[0], plain(x)[0])
        output, first = double.train()(x)[0], leaves(double(x)[1])[0][0]
    assert (output != 0).double().mean() > 0.5 or "relu" in variant.cell
    torch.testing.assert_close(first, leaves(plain(x)[1])[0][0])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "norm" in v.cell], ids=lambda v: v.cell)
def test_norm_of_a_zero_state_in_half_precision(variant):
    """Its slope is 1 / sqrt(eps), but a zero state adds nothing to the weights' gradient."""
    module, x = variant.layer(I, H, dtype=torch.half), randn(T, B, I, dtype=torch.half)
    with rnnkit.backend("reference"):
        (module(x, resets=torch.arange(T)[:, None].expand(T, B) % 5 == 0)[0] * 500).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name
