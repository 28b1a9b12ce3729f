"""WaveNet is the paper's stack: equal to its equations, causal, with the stated reach."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from layer_variants import assert_gradients_add_up
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.testing import assert_close

import rnnkit
from rnnkit.layers.conv import CausalConv1d
from rnnkit.layers.wavenet import WaveNet, WaveNetBlock

CLOSE = {"rtol": 1e-11, "atol": 1e-12}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def reference():
    """The convolutions have tests of their own, and kernels in the interpreter would be slow."""
    with rnnkit.backend("reference"):
        yield


def randn(*shape):
    return torch.randn(*shape, dtype=torch.double).requires_grad_()


def conv(p, name, x, dilation=1):
    weight = p[f"{name}.weight"]
    x = F.pad(x, ((weight.shape[2] - 1) * dilation, 0))
    return F.conv1d(x, weight, p[f"{name}.bias"], dilation=dilation)


def paper_block(p, name, x, dilation):
    """Equation 2 and figure 3 on a dictionary of parameters."""
    f, g = conv(p, f"{name}conv", x, dilation).tensor_split(2, dim=1)
    z = torch.tanh(f) * torch.sigmoid(g)
    # The last block of a stack has no residual.
    on = x + conv(p, f"{name}residual", z) if f"{name}residual.weight" in p else None
    return on, conv(p, f"{name}skip", z)


def paper_stack(p, x, dilations):
    """Figure 4."""
    x, skips = conv(p, "input", x), []
    for i, dilation in enumerate(dilations):
        x, skip = paper_block(p, f"blocks.{i}.", x, dilation)
        skips.append(skip)
    hidden = conv(p, "hidden", torch.stack(skips).sum(0).relu())
    return conv(p, "output", hidden.relu())


@pytest.mark.parametrize(("kernel_size", "dilation", "skip"), [(2, 1, None), (2, 4, 5), (3, 2, 1)])
def test_block_equals_the_paper(kernel_size, dilation, skip):
    block = WaveNetBlock(3, kernel_size, dilation, skip, dtype=torch.double)
    x = randn(2, 3, 7)
    on, skipped = block(x)
    assert on.shape == (2, 3, 7)
    assert skipped.shape == (2, skip or 3, 7)
    expected = paper_block(dict(block.named_parameters()), "", x, dilation)
    cotangents = [torch.randn_like(v) for v in (on, skipped)]
    leaves = [x, *block.parameters()]
    got = torch.autograd.grad((on, skipped), leaves, cotangents)
    want = torch.autograd.grad(expected, leaves, cotangents)
    for a, b in zip((on, skipped, *got), (*expected, *want), strict=True):
        assert_close(a, b, **CLOSE)


@pytest.mark.parametrize(
    ("arguments", "dilations", "receptive_field"),
    [
        ({"layers": 3, "blocks": 2}, [1, 2, 4, 1, 2, 4], 16),
        ({"layers": 2, "blocks": 1, "kernel_size": 3, "skip_channels": 6}, [1, 2], 9),
        ({"layers": 1, "blocks": 1, "kernel_size": 1}, [1], 1),
    ],
)
def test_stack_equals_the_paper(arguments, dilations, receptive_field):
    model = WaveNet(2, 3, residual_channels=4, **arguments, dtype=torch.double)
    assert model.receptive_field == receptive_field
    x = randn(2, 2, 20)
    y, expected = model(x), paper_stack(dict(model.named_parameters()), x, dilations)
    assert y.shape == (2, 3, 20)
    assert_close(y, expected, **CLOSE)
    leaves, dy = [x, *model.parameters()], torch.randn_like(y)
    got, want = (torch.autograd.grad(v, leaves, dy) for v in (y, expected))
    for dg, dw in zip(got, want, strict=True):
        assert_close(dg, dw, **CLOSE)


def test_defaults_are_the_paper_s():
    model = WaveNet(1, 10)
    assert [block.conv.dilation[0] for block in model.blocks] == [2**k for k in range(10)] * 3
    assert model.receptive_field == 1 + 1 + 3 * 1023
    assert {block.conv.weight.shape for block in model.blocks} == {(64, 32, 2)}
    assert model.hidden.weight.shape == (32, 32, 1)
    assert model.output.weight.shape == (10, 32, 1)


def test_outputs_see_the_receptive_field_and_nothing_else():
    model = WaveNet(1, 2, residual_channels=8, layers=2, blocks=2, dtype=torch.double)
    reach = model.receptive_field
    x = randn(1, 1, 2 * reach + 3)
    for t in (0, reach - 1, 2 * reach - 1):
        (dx,) = torch.autograd.grad(model(x)[..., t].sum(), x)
        first = max(0, t - reach + 1)
        assert (dx[..., first : t + 1] != 0).all()
        assert (dx[..., :first] == 0).all()
        assert (dx[..., t + 1 :] == 0).all()


def test_every_parameter_gets_a_gradient():
    model = WaveNet(1, 2, residual_channels=8, layers=2, blocks=2)
    model(torch.randn(2, 1, 12)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_gradcheck():
    block = WaveNetBlock(2, dilation=2, skip_channels=1, dtype=torch.double)
    assert gradcheck(block, (randn(1, 2, 4),))
    assert gradgradcheck(block, (randn(1, 2, 4),))
    model = WaveNet(1, 1, residual_channels=2, layers=2, blocks=1, dtype=torch.double)
    assert gradcheck(model, (randn(1, 1, 5),))
    assert gradgradcheck(model, (randn(1, 1, 5),))


@pytest.mark.parametrize(("N", "L"), [(0, 5), (2, 0), (0, 0)])
def test_empty(N, L):
    x = torch.zeros(N, 2, L, requires_grad=True)
    y = WaveNet(2, 3, residual_channels=4, layers=2, blocks=1)(x)
    assert y.shape == (N, 3, L)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_fullgraph_compile():
    model = WaveNet(1, 2, residual_channels=4, layers=2, blocks=2, dtype=torch.double)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = randn(2, 1, 9)
    y, expected = compiled(x), model(x)
    assert_close(y, expected, **CLOSE)
    (got,) = torch.autograd.grad(y.square().sum(), x)
    (want,) = torch.autograd.grad(expected.square().sum(), x)
    assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_half_dtypes_and_autocast(dtype):
    model = WaveNet(1, 2, residual_channels=8, layers=2, blocks=1)
    x = torch.randn(2, 1, 9)
    expected = model(x)
    # Six convolutions in a row, each rounding values near 1.
    bound = 6 * 16**0.5 * torch.finfo(dtype).eps
    with torch.autocast("cpu", dtype):
        under_autocast = model(x)
    for y in (under_autocast, copy.deepcopy(model).to(dtype)(x.to(dtype))):
        assert y.dtype == dtype
        assert_close(y.float(), expected, rtol=0, atol=bound)


def test_copies_and_vmap():
    model = WaveNet(1, 2, residual_channels=4, layers=2, blocks=1, dtype=torch.double)
    x = torch.randn(3, 2, 1, 9, dtype=torch.double)
    expected = torch.stack([model(row) for row in x])
    assert_close(vmap(model)(x), expected, **CLOSE)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(other(x[0]), expected[0], **CLOSE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"in_channels": 0}, "in_channels must be an integer of at least 1, got 0"),
        ({"out_channels": 0}, "out_channels must be .* got 0"),
        ({"residual_channels": -1}, "residual_channels must be .* got -1"),
        ({"skip_channels": 0}, "skip_channels must be .* got 0"),
        ({"kernel_size": 0}, "kernel_size must be .* got 0"),
        ({"layers": 0}, "layers must be .* got 0"),
        ({"blocks": 0}, "blocks must be .* got 0"),
    ],
)
def test_stack_errors(changed, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        WaveNet(**{"in_channels": 1, "out_channels": 2, **changed})


@pytest.mark.parametrize("name", ["channels", "kernel_size", "dilation", "skip_channels"])
def test_block_errors(name):
    with pytest.raises(ValueError, match=rf"^{name} must be an integer of at least 1, got 0"):
        WaveNetBlock(**{"channels": 2, name: 0})


def test_input_errors():
    message = r"input must be \(N, 2, L\) or \(2, L\), got \(4, 3, 9\)"
    with pytest.raises(ValueError, match=message):
        WaveNet(2, 3)(torch.zeros(4, 3, 9))
    with pytest.raises(ValueError, match=message):
        WaveNetBlock(2)(torch.zeros(4, 3, 9))


def small():
    return WaveNet(2, 3, residual_channels=4, layers=2, blocks=2, dtype=torch.double)


def runs_the_blocks(model, monkeypatch):
    """How many blocks a call runs one by one."""
    calls, forward = [], WaveNetBlock.forward

    def counted(self, *args, **kwargs):
        calls.append(self)
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(WaveNetBlock, "forward", counted)
        model(torch.zeros(1, 2, 5, dtype=torch.double))
    return len(calls)


class Doubled(WaveNetBlock):
    def forward(self, x):
        on, skip = super().forward(x)
        return on, 2 * skip


def test_a_replaced_block_runs(monkeypatch):
    model, x = small(), randn(1, 2, 9)
    assert runs_the_blocks(model, monkeypatch) == 0
    expected = paper_stack(dict(model.named_parameters()), x, [1, 2, 1, 2])
    for i in (0, 2):
        other = Doubled(4, dilation=model.blocks[i].conv.dilation[0], dtype=torch.double)
        other.load_state_dict(model.blocks[i].state_dict())
        other.skip.weight.data *= 0.5
        other.skip.bias.data *= 0.5
        model.blocks[i] = other
    assert runs_the_blocks(model, monkeypatch) == 4
    assert_close(model(x), expected, **CLOSE)


@pytest.mark.parametrize("part", ["", ".conv", ".residual", ".skip"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_run(part, kind, monkeypatch):
    model, x, ran = small(), randn(1, 2, 9), []
    expected = model(x)
    (dx,) = torch.autograd.grad(expected.sum(), x)
    module = model.get_submodule(f"blocks.1{part}")
    handle = getattr(module, f"register_{kind}_hook")(lambda *args: ran.append(args[0]))
    y = model(x)
    assert_close(y, expected, **CLOSE)
    assert_close(torch.autograd.grad(y.sum(), x), (dx,), **CLOSE)
    assert ran == [module]
    handle.remove()
    assert runs_the_blocks(model, monkeypatch) == 0


def test_hooks_of_all_modules_run():
    model, ran = small(), []
    with torch.nn.modules.module.register_module_forward_hook(lambda m, *args: ran.append(m)):
        model(randn(1, 2, 9))
    assert {model.blocks[0], model.blocks[0].conv, model.blocks[3].skip} <= set(ran)


def in_a_sequence(block):
    block.conv = torch.nn.Sequential(block.conv)


def own_forward(block):
    forward = block.conv.forward
    block.conv.forward = lambda input: forward(input)


def pruned(block):
    torch.nn.utils.prune.identity(block.conv, "weight")


@pytest.mark.parametrize("replace", [in_a_sequence, own_forward, pruned])
def test_replaced_parts_run(replace):
    """What no longer is a plain product of its weights, or has weights that a hook makes."""
    model, x = small(), randn(1, 2, 9)
    expected = model(x)
    replace(model.blocks[1])
    assert not model.is_fusible()
    assert_close(model(x), expected, **CLOSE)


def test_other_options_of_parts_are_kept():
    """A convolution with groups, without bias or of more taps, where a block has a plain one."""
    options = {"dtype": torch.double}
    for name, part in (
        ("conv", CausalConv1d(4, 8, 2, groups=2, **options)),
        ("conv", CausalConv1d(4, 8, 2, bias=False, **options)),
        ("conv", CausalConv1d(4, 8, 3, dilation=5, **options)),
        ("residual", CausalConv1d(4, 4, 2, **options)),
        ("skip", CausalConv1d(4, 4, 1, activation="tanh", **options)),
        ("skip", CausalConv1d(4, 4, 1, bias=False, **options)),
    ):
        model, x = small(), randn(1, 2, 9)
        setattr(model.blocks[1], name, part)
        expected, total = model.input(x), 0
        for block in model.blocks:
            f, g = block.conv(expected).chunk(2, 1)
            z = torch.tanh(f) * torch.sigmoid(g)
            total = total + block.skip(z)
            expected = expected if block.residual is None else expected + block.residual(z)
        assert_close(model(x), model.output(model.hidden(total.relu())), **CLOSE)


def test_weight_norm(monkeypatch):
    """A parametrized weight is made anew at each call, in one go or not."""
    model, x = small(), randn(1, 2, 9)
    lead = model.input(x).detach()
    expected = model.skips(lead)
    for block in model.blocks:
        torch.nn.utils.parametrizations.weight_norm(block.conv)
    assert runs_the_blocks(model, monkeypatch) == 0
    assert_close(model.skips(lead), expected, **CLOSE)
    lengths = model.blocks[0].conv.parametrizations.weight.original0
    (gradient,) = torch.autograd.grad(model.skips(lead).square().sum(), lengths)
    assert (gradient != 0).all()
    lengths.data *= 2
    assert not torch.allclose(model.skips(lead), expected)


@pytest.mark.parametrize("on", ["torch", "reference"])
def test_gradients_add_up_in_place(on):
    def prepare():
        torch.manual_seed(0)
        module = WaveNet(1, 2, residual_channels=4, layers=2, blocks=2, global_channels=3).double()
        x, h = torch.randn(2, 1, 9, dtype=torch.double), torch.randn(2, 3, dtype=torch.double)

        def step():
            with rnnkit.backend(on):
                module(x, global_condition=h).sin().sum().backward()

        return dict(module.named_parameters()), step

    assert_gradients_add_up(prepare)
