"""LayerNorm equals torch.nn.LayerNorm, and its extras equal their formula."""

import copy
import pickle

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, vmap
from torch.testing import assert_close
from torch.testing._internal.common_modules import module_db

from rnnkit.layers.norm import LayerNorm
from rnnkit.ops.layer_norm import layer_norm

ACTIVATE = {
    None: lambda y: y,
    "relu": lambda y: y.clamp(min=0),
    "silu": lambda y: y * torch.sigmoid(y),
    "tanh": lambda y: 2 * torch.sigmoid(2 * y) - 1,
}
SHAPES = [((3, 4, 7), (7,)), ((2, 3, 4, 5), (4, 5)), ((6,), (6,)), ((5, 1), (1,)), ((0, 4), (4,))]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randn(*shape, dtype=torch.double):
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def formula(x, dims, weight, bias, eps, residual, activation):
    v = x if residual is None else x + residual
    axes = tuple(range(-dims, 0))
    centred = v - v.mean(axes, keepdim=True)
    y = centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight
    return ACTIVATE[activation](y if bias is None else y + bias)


def entries():
    (info,) = [info for info in module_db if info.module_cls is torch.nn.LayerNorm]
    for training in (True, False):
        inputs = info.module_inputs_func(
            info, device="cpu", dtype=torch.double, requires_grad=True, training=training
        )
        for entry in inputs:
            yield pytest.param(entry, training, id=f"{entry.desc}-{training}")


@pytest.mark.parametrize(("entry", "training"), list(entries()))
def test_torch_module_database(entry, training):
    made = entry.constructor_input
    theirs = torch.nn.LayerNorm(*made.args, **made.kwargs, dtype=torch.double).train(training)
    ours = LayerNorm(*made.args, **made.kwargs, dtype=torch.double).train(training)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    assert repr(ours) == repr(theirs)

    (x,) = entry.forward_input.args
    y, expected = ours(x), theirs(x)
    assert_close(y, expected, rtol=0, atol=1e-9)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, *ours.parameters()], dy)
    want = torch.autograd.grad(expected, [x, *theirs.parameters()], dy)
    for dg, dw in zip(got, want, strict=True):
        assert_close(dg, dw, rtol=0, atol=1e-9)


@pytest.mark.parametrize("activation", ACTIVATE)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("shape", "normalized"), SHAPES)
def test_equals_formula(shape, normalized, with_residual, activation):
    layer = LayerNorm(normalized, 1e-3, activation=activation, dtype=torch.double)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x, residual = randn(*shape), randn(*shape) if with_residual else None
    y = layer(x, residual)
    expected = formula(
        x, len(normalized), layer.weight, layer.bias, layer.eps, residual, activation
    )
    assert_close(y, expected, rtol=1e-12, atol=1e-12)

    leaves = [v for v in (x, residual, layer.weight, layer.bias) if v is not None]
    dy = torch.randn_like(y)
    got, want = (torch.autograd.grad(v, leaves, dy) for v in (y, expected))
    for dg, dw in zip(got, want, strict=True):
        assert_close(dg, dw, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("activation", ACTIVATE)
def test_gradcheck(activation):
    def run(x, residual, weight, bias):
        return layer_norm(x, (4,), weight, bias, 1e-5, residual, activation)

    leaves = (randn(3, 4), randn(3, 4), randn(4), randn(4))
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_constructor_and_state_dict_are_torch_s(affine, bias):
    arguments = ((3, 4), 1e-3, affine, bias)
    ours, theirs = LayerNorm(*arguments), torch.nn.LayerNorm(*arguments)
    assert isinstance(ours, torch.nn.LayerNorm)
    assert repr(ours) == repr(theirs)
    assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    theirs.load_state_dict(ours.state_dict())


def test_extra_repr_names_the_activation():
    assert repr(LayerNorm(4, activation="silu")).endswith("activation='silu')")


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_half_dtypes_round_the_float32_result(dtype):
    layer = LayerNorm(64, activation="tanh")
    x, residual = torch.randn(8, 64, dtype=dtype), torch.randn(8, 64, dtype=dtype)
    y = copy.deepcopy(layer).to(dtype)(x, residual)
    assert y.dtype == dtype
    # The sum, the norm and tanh each round once; the norm scales the sum's error by about one.
    eps = torch.finfo(dtype).eps
    bound = 4 * eps * (x.float() + residual.float()).abs().max().item()
    assert_close(y.float(), layer(x.float(), residual.float()), rtol=0, atol=bound)


def test_autocast_gives_torch_s_dtype():
    x = torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = LayerNorm(4)(x), torch.nn.LayerNorm(4)(x)
    assert y.dtype == expected.dtype
    assert_close(y, expected, rtol=0, atol=0)


def test_fullgraph_compile():
    layer = LayerNorm(6, activation="silu", dtype=torch.double)
    x, residual = randn(3, 6), randn(3, 6)
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, residual)
    expected = layer(x, residual)
    assert_close(y, expected)
    for dg, dw in zip(
        torch.autograd.grad(y.square().sum(), [x, residual, layer.weight]),
        torch.autograd.grad(expected.square().sum(), [x, residual, layer.weight]),
        strict=True,
    ):
        assert_close(dg, dw)


def test_vmap_over_inputs_and_parameters():
    layer = LayerNorm(4, activation="tanh", dtype=torch.double)
    x, residual = torch.randn(2, 5, 3, 4, dtype=torch.double).unbind(0)
    weights = torch.randn(5, 4, dtype=torch.double)

    def run(weight, x, residual):
        return functional_call(layer, {"weight": weight}, (x, residual))

    expected = torch.stack([run(*row) for row in zip(weights, x, residual, strict=True)])
    assert_close(vmap(run)(weights, x, residual), expected)


def test_copies_and_strides():
    layer = LayerNorm(4, activation="relu", dtype=torch.double)
    x = torch.randn(4, 3, dtype=torch.double)
    expected = layer(x.T.contiguous())
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(other(x.T), expected, rtol=0, atol=0)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"activation must be one of .*'relu'.*got 'gelu'"):
        LayerNorm(4, activation="gelu")
    with pytest.raises(ValueError, match=r"activation must be one of .*got 'gated'"):
        layer_norm(torch.randn(4), (4,), activation="gated")
    for bad in (-1, (3, -2), ()):
        with pytest.raises(ValueError, match="normalized_shape must be one or more sizes"):
            LayerNorm(bad)
    with pytest.raises(ValueError, match=r"residual must have .* shape \(2, 4\), got \(4,\)"):
        LayerNorm(4)(torch.randn(2, 4), torch.randn(4))
    with pytest.raises(RuntimeError, match=r"normalized_shape=\[4\].*\[2, 5\]"):
        LayerNorm(4)(torch.randn(2, 5))
    with pytest.raises(TypeError, match="positional"):
        LayerNorm(4, 1e-5, True, True, None, None, "relu")
