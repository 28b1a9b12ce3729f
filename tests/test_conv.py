"""CausalConv1d equals torch's convolution on a left-padded input, whole, in chunks, in steps."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from rnnkit.layers.conv import CausalConv1d
from rnnkit.ops.causal_conv1d import causal_conv1d

ACTIVATE = {
    None: lambda y: y,
    "relu": lambda y: y.clamp(min=0),
    "silu": lambda y: y * torch.sigmoid(y),
    "tanh": lambda y: 2 * torch.sigmoid(2 * y) - 1,
    "gated": lambda y: torch.tanh(y[:, : y.shape[1] // 2]) * torch.sigmoid(y[:, y.shape[1] // 2 :]),
}
# Sums of fewer than 100 terms near 1: 100 * eps is 2e-14.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def randn(*shape):
    return torch.randn(*shape, dtype=torch.double).requires_grad_()


def taps(x, weight, bias, stride, dilation, groups, activation, state):
    """The definition, tap by tap: no padding, no convolution call."""
    rows, _, kernel_size = weight.shape
    context = (kernel_size - 1) * dilation
    past = x.new_zeros(x.shape[0], x.shape[1], context) if state is None else state
    seen = torch.cat([past, x], dim=2).unflatten(1, (groups, -1))
    w = weight.unflatten(0, (groups, -1))
    times = torch.arange(0, x.shape[2], stride)
    y = x.new_zeros(x.shape[0], rows, len(times))
    for k in range(kernel_size):
        tap = seen[..., times + k * dilation]
        y = y + torch.einsum("goc,ngct->ngot", w[..., k], tap).flatten(1, 2)
    return ACTIVATE[activation](y if bias is None else y + bias[:, None])


def problems():
    """A fixed random sweep; every activation, layout and the listed corners occur."""
    draw = random.Random(4)
    for i in range(60):
        groups = draw.choice([1, 1, 2, 3])
        yield {
            "in_channels": groups * draw.randint(1, 3),
            "out_channels": groups * draw.randint(1, 3),
            "kernel_size": draw.randint(1, 4),
            "stride": draw.choice([1, 1, 2, 3]),
            "dilation": draw.choice([1, 2, 5]),
            "groups": groups,
            "bias": i % 3 != 0,
            "activation": list(ACTIVATE)[i % 5],
            "channels_last": i % 2 == 1,
            # From shorter than the receptive field (16) to longer, empty included.
            "L": draw.choice([0, 1, 2, 3, 5, 13, 24]),
            "N": draw.choice([0, 1, 2, 2]),
            "with_state": draw.random() < 0.4,
        }


def same_gradients(y, expected, leaves, retain_graph=False):
    dy = torch.randn_like(y)
    got, want = (torch.autograd.grad(v, leaves, dy, retain_graph) for v in (y, expected))
    for i, (dg, dw) in enumerate(zip(got, want, strict=True)):
        assert_close(dg, dw, **CLOSE, msg=lambda text, i=i: f"gradient {i}: {text}")


@pytest.mark.parametrize("problem", list(problems()), ids=lambda p: "-".join(map(str, p.values())))
def test_equals_definition(problem):
    problem = dict(problem)
    L, N, with_state = (problem.pop(name) for name in ("L", "N", "with_state"))
    layer = CausalConv1d(**problem, dtype=torch.double)
    x = randn(N, layer.in_channels, L)
    state = randn(N, layer.in_channels, layer.context) if with_state else None
    y = layer(x.mT if layer.channels_last else x, state)
    y = y.mT if layer.channels_last else y
    assert y.shape == (N, layer.out_channels, -(-L // layer.stride[0]))

    arguments = (layer.stride[0], layer.dilation[0], layer.groups, layer.activation, state)
    expected = taps(x, layer.weight, layer.bias, *arguments)
    assert_close(y, expected, **CLOSE)
    leaves = [v for v in (x, state, *layer.parameters()) if v is not None]
    same_gradients(y, expected, leaves)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(2, 1, 8), (4, 2, 1), (3, 3, 2)])
def test_equals_torch_on_a_left_padded_input(groups, kernel_size, stride, dilation):
    arguments = (4, 8, kernel_size, stride)
    theirs = torch.nn.Conv1d(*arguments, dilation=dilation, groups=groups, dtype=torch.double)
    ours = CausalConv1d(*arguments, dilation=dilation, groups=groups, dtype=torch.double)
    ours.load_state_dict(theirs.state_dict())
    x = randn(3, 4, 10)
    y, expected = ours(x), theirs(F.pad(x, ((kernel_size - 1) * dilation, 0)))
    assert_close(y, expected, **CLOSE)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, *ours.parameters()], dy)
    want = torch.autograd.grad(expected, [x, *theirs.parameters()], dy)
    for dg, dw in zip(got, want, strict=True):
        assert_close(dg, dw, **CLOSE)


@pytest.mark.parametrize("activation", ACTIVATE)
@pytest.mark.parametrize("stride", [1, 2])
def test_no_output_depends_on_later_inputs(activation, stride):
    layer = CausalConv1d(
        2, 3, 3, stride, dilation=2, activation=activation, channels_last=True, dtype=torch.double
    )
    x = randn(1, 12, 2)
    y = layer(x)
    # torch.rand cotangents stay positive, so that only relu can hide an input it depends on.
    for t in range(y.shape[1]):
        (dx,) = torch.autograd.grad(y[0, t], x, torch.rand(3).double(), retain_graph=True)
        now = t * stride
        assert (dx[:, now + 1 :] == 0).all()
        if activation != "relu":
            assert (dx[:, now] != 0).all()


@pytest.mark.parametrize("activation", ACTIVATE)
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 2, 1), (2, 1, 2)])
def test_gradcheck(activation, stride, dilation, groups):
    def run(x, weight, bias, state):
        return causal_conv1d(x, weight, bias, stride, dilation, groups, activation, state)

    leaves = (randn(2, 2, 5), randn(4, 2 // groups, 3), randn(4), randn(2, 2, 2 * dilation))
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (2, 4), (4, 3)])
@pytest.mark.parametrize("activation", ["silu", "tanh", "gated"])
def test_steps_and_chunks_equal_the_whole(channels_last, groups, kernel_size, dilation, activation):
    layer = CausalConv1d(
        4,
        6,
        kernel_size,
        dilation=dilation,
        groups=groups,
        activation=activation,
        channels_last=channels_last,
        dtype=torch.double,
    )
    time = 1 if channels_last else 2
    x = randn(3, 20, 4) if channels_last else randn(3, 4, 20)
    whole = layer(x)

    state, ys = None, []
    for x_t in x.unbind(time):
        y_t, state = layer.step(x_t, state)
        ys.append(y_t)
    stepped = torch.stack(ys, time)
    assert torch.equal(stepped, whole)  # bit for bit, in float64
    same_gradients(stepped, whole, [x, *layer.parameters()], retain_graph=True)

    state, ys = None, []
    for chunk in x.split([1, 7, 0, 12], time):
        y, state = layer(chunk, state, return_state=True)
        ys.append(y)
    chunked = torch.cat(ys, time)
    assert torch.equal(chunked, whole)
    same_gradients(chunked, whole, [x, *layer.parameters()])
    assert state.shape == (3, 4, layer.context)


def test_strided_chunks_equal_the_whole():
    layer = CausalConv1d(2, 3, 3, 2, dilation=2, dtype=torch.double)
    x = randn(2, 2, 11)
    first, state = layer(x[..., :4], return_state=True)
    second, state = layer(x[..., 4:6], state, return_state=True)
    # The last chunk hands nothing on, so any length will do.
    chunked = torch.cat([first, second, layer(x[..., 6:], state)], 2)
    assert_close(chunked, layer(x), **CLOSE)


@pytest.mark.parametrize("channels_last", [False, True])
def test_unbatched_input(channels_last):
    layer = CausalConv1d(2, 3, 3, channels_last=channels_last, dtype=torch.double)
    x = randn(1, 5, 2) if channels_last else randn(1, 2, 5)
    state = randn(1, 2, 2)
    whole, last = layer(x, state, return_state=True)
    y, s = layer(x[0], state[0], return_state=True)
    assert_close(y, whole[0], **CLOSE)
    assert_close(s, last[0], rtol=0, atol=0)
