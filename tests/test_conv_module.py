"""CausalConv1d as a module: state, dtypes, compile, vmap, copies and errors."""

import copy
import pickle

import pytest
import torch
from test_conv import CLOSE, randn, same_gradients
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close

from rnnkit.layers.conv import CausalConv1d
from rnnkit.ops.causal_conv1d import causal_conv1d


@pytest.mark.parametrize("activation", [None, "gated"])
def test_initialisation_and_state_dict_are_torch_s(activation):
    rows = 12 if activation == "gated" else 6
    arguments = {"kernel_size": (3,), "stride": (2,), "dilation": (4,), "groups": 2}
    torch.manual_seed(0)
    theirs = torch.nn.Conv1d(4, rows, **arguments)
    torch.manual_seed(0)
    ours = CausalConv1d(4, 6, **arguments, activation=activation)
    assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    theirs.load_state_dict(ours.state_dict())
    assert ours.out_channels == 6


def test_repr_names_the_extras():
    text = repr(CausalConv1d(4, 6, 3, dilation=2, activation="gated", channels_last=True))
    assert text == (
        "CausalConv1d(4, 6, kernel_size=(3,), stride=(1,), dilation=(2,), "
        "activation='gated', channels_last=True)"
    )


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_half_dtypes_and_autocast(dtype):
    layer = CausalConv1d(8, 8, 3, dilation=2, activation="gated")
    x = torch.randn(2, 8, 12)
    expected = layer(x)
    # 24 products of inputs and weights rounded once each, then two rounded activations.
    bound = 24**0.5 * torch.finfo(dtype).eps * 2
    y = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert_close(y.float(), expected, rtol=0, atol=bound)
    with torch.autocast("cpu", dtype):
        y, state = layer(x, return_state=True)
        again = layer(x, state)
        empty = layer(x[..., :0])
    assert y.dtype == again.dtype == empty.dtype == dtype
    assert_close(y.float(), expected, rtol=0, atol=bound)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_fullgraph_compile_of_any_length():
    layer = CausalConv1d(2, 3, 3, dilation=2, activation="gated", dtype=torch.double)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for L in (7, 9, 4):
        x, state = randn(2, 2, L), randn(2, 2, 4)
        y, last = compiled(x, state, return_state=True)
        expected, expected_last = layer(x, state, return_state=True)
        assert_close(y, expected, **CLOSE)
        assert_close(last, expected_last, rtol=0, atol=0)
        same_gradients(y, expected, [x, state, layer.weight])


def test_vmap_over_inputs_parameters_and_gradients():
    layer = CausalConv1d(2, 3, 2, activation="gated", dtype=torch.double)
    x = torch.randn(5, 4, 2, 6, dtype=torch.double)
    weights = torch.randn(5, *layer.weight.shape, dtype=torch.double)

    def run(weight, x):
        return functional_call(layer, {"weight": weight}, (x,))

    def loss(weight, x):
        return run(weight, x).square().sum()

    for mapped in (run, grad(loss)):
        expected = torch.stack([mapped(*row) for row in zip(weights, x, strict=True)])
        assert_close(vmap(mapped)(weights, x), expected, **CLOSE)


def test_copies_and_strides():
    layer = CausalConv1d(2, 3, 2, activation="gated", dtype=torch.double)
    x = torch.randn(6, 2, 4, dtype=torch.double).permute(2, 1, 0)
    expected = layer(x.contiguous())
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(other(x), expected, **CLOSE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"in_channels": 0}, r"in_channels must be an integer of at least 1, got 0"),
        ({"out_channels": -2}, r"out_channels must be .* at least 1, got -2"),
        ({"kernel_size": 0}, r"kernel_size must be .* at least 1, got 0"),
        ({"kernel_size": (2, 2)}, r"kernel_size must be .* at least 1, got \(2, 2\)"),
        ({"kernel_size": 2.5}, r"kernel_size must be an integer .* got 2\.5"),
        ({"stride": 0}, r"stride must be .* at least 1, got 0"),
        ({"dilation": 0}, r"dilation must be .* at least 1, got 0"),
        ({"groups": 0}, r"groups must be .* at least 1, got 0"),
        ({"groups": 3}, r"groups must divide in_channels = 4, got 3"),
        ({"groups": 4}, r"groups must divide out_channels = 6, got 4"),
        ({"activation": "gelu"}, r"activation must be one of .*'gated'.*got 'gelu'"),
        ({"padding": 1}, r"padding must not be given, got 1"),
        ({"padding": "same"}, r"padding must not be given, got 'same'"),
    ],
)
def test_constructor_errors(changed, message):
    with pytest.raises(ValueError, match=message):
        CausalConv1d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **changed})


def test_torch_s_padding_arguments_cannot_pass_unseen():
    with pytest.raises(TypeError, match="positional"):
        CausalConv1d(4, 6, 3, 1, 2)  # 2 is torch's padding
    with pytest.raises(TypeError, match="padding_mode"):
        CausalConv1d(4, 6, 3, padding_mode="circular")


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((2, 5, 8), {}, r"input must be \(N, 4, L\) or \(4, L\), got \(2, 5, 8\)"),
        ((8,), {}, r"input must be .* got \(8,\)"),
        ((2, 4, 8, 1), {}, r"input must be .* got \(2, 4, 8, 1\)"),
        ((2, 4, 8), {"state": (2, 4, 3)}, r"state must be \(2, 4, 4\) .* got \(2, 4, 3\)"),
        ((2, 4, 8), {"state": (1, 4, 4)}, r"state must be \(2, 4, 4\) .* got \(1, 4, 4\)"),
        ((4, 8), {"state": (1, 4, 4)}, r"state must have 2 dimensions, .* got \(1, 4, 4\)"),
    ],
)
def test_forward_errors(shape, arguments, message):
    layer = CausalConv1d(4, 6, 3, dilation=2)
    tensors = {name: torch.zeros(size) for name, size in arguments.items()}
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(shape), **tensors)


def test_layout_stride_and_dtype_errors():
    with pytest.raises(ValueError, match=r"input must be \(N, L, 4\) or \(L, 4\)"):
        CausalConv1d(4, 6, 3, channels_last=True)(torch.zeros(2, 4, 8))
    layer = CausalConv1d(4, 6, 3)
    with pytest.raises(ValueError, match=r"state must be .*float32.*; got .*float64"):
        layer(torch.zeros(2, 4, 8), torch.zeros(2, 4, 2).double())
    for bad in (torch.zeros(2, 5), torch.zeros(2, 4, 1)):
        with pytest.raises(ValueError, match=r"x_t must be \(N, 4\), got"):
            layer.step(bad)
    strided = CausalConv1d(4, 6, 3, 2)
    with pytest.raises(ValueError, match=r"stride must be 1 for step\(\), got 2"):
        strided.step(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"input must have a length .* stride = 2 .* got 7"):
        strided(torch.zeros(2, 4, 7), return_state=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(4, 8)}, r"x must be \(N, 4, L\), got \(4, 8\)"),
        ({"x": torch.zeros(2, 5, 8)}, r"x must be \(N, 4, L\), got \(2, 5, 8\)"),
        ({"weight": torch.zeros(6, 4)}, r"weight must be .* got \(6, 4\)"),
        ({"weight": torch.zeros(6, 4, 0)}, r"weight must be .* got \(6, 4, 0\)"),
        ({"weight": torch.zeros(5, 2, 3), "groups": 2}, r"groups must divide the 5 rows .* got 2"),
        ({"weight": torch.zeros(5, 4, 3), "activation": "gated"}, r"even number of rows .* got 5"),
        ({"bias": torch.zeros(4)}, r"bias must be \(6,\), got \(4,\)"),
        ({"stride": 0}, r"stride must be .* got 0"),
        ({"dilation": -1}, r"dilation must be .* got -1"),
        ({"groups": 0}, r"groups must be .* got 0"),
        ({"activation": "sigmoid"}, r"activation must be one of .* got 'sigmoid'"),
    ],
)
def test_reference_errors(changed, message):
    arguments = {"x": torch.zeros(2, 4, 8), "weight": torch.zeros(6, 4, 3), **changed}
    with pytest.raises(ValueError, match=message):
        causal_conv1d(**arguments)
