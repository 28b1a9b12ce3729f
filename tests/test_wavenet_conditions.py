"""A conditioned WaveNet is section 2.5 of the paper, for local and global conditions and both."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.testing import assert_close

import rnnkit
from rnnkit.layers.wavenet import WaveNet, WaveNetBlock

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
KINDS = [("local",), ("global",), ("local", "global")]
CHANNELS = {"local": 3, "global": 5}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def reference():
    """The convolutions have tests of their own, and kernels in the interpreter would be slow."""
    with rnnkit.backend("reference"):
        yield


@pytest.fixture(params=KINDS, ids="-".join)
def kinds(request):
    return request.param


def randn(*shape):
    return torch.randn(*shape, dtype=torch.double).requires_grad_()


def conditioned(kind, kinds, *arguments, **options):
    channels = {f"{name}_channels": CHANNELS[name] for name in kinds}
    return kind(*arguments, **options, **channels, dtype=torch.double)


def make_conditions(kinds, N, L):
    shapes = {"local": (N, CHANNELS["local"], L), "global": (N, CHANNELS["global"])}
    return {f"{name}_condition": randn(*shapes[name]) for name in kinds}


def paper_stack(model, x, dilations, local_condition=None, global_condition=None):
    """Equation 2 with section 2.5's terms, and figures 3 and 4, written with sums over indices.

    The filter's rows are the first half of each weight, the gate's the second.
    """
    p = dict(model.named_parameters())

    def conv(name, x, dilation=1):
        w = p[f"{name}.weight"]
        lags = [(w.shape[2] - 1 - k) * dilation for k in range(w.shape[2])]
        shifted = [F.pad(x, (lag, 0))[..., : x.shape[2]] for lag in lags]
        return torch.einsum("ock,knct->not", w, torch.stack(shifted)) + p[f"{name}.bias"][:, None]

    x, total = conv("input", x), 0
    for i, dilation in enumerate(dilations):
        a = conv(f"blocks.{i}.conv", x, dilation)
        if local_condition is not None:
            v = p[f"blocks.{i}.local_condition.weight"][..., 0]
            a = a + torch.einsum("oc,nct->not", v, local_condition)
        if global_condition is not None:
            v = p[f"blocks.{i}.global_condition.weight"]
            a = a + torch.einsum("oc,nc->no", v, global_condition)[..., None]
        C = a.shape[1] // 2
        z = torch.tanh(a[:, :C]) * torch.sigmoid(a[:, C:])
        total = total + conv(f"blocks.{i}.skip", z)
        if i < len(dilations) - 1:
            x = x + conv(f"blocks.{i}.residual", z)
    return conv("output", conv("hidden", total.relu()).relu())


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_stack_equals_the_paper(kinds, kernel_size):
    options = {"kernel_size": kernel_size, "skip_channels": 6, "layers": 2, "blocks": 2}
    model = conditioned(WaveNet, kinds, 2, 3, 4, **options)
    x, conditions = randn(2, 2, 9), make_conditions(kinds, 2, 9)
    y, expected = model(x, **conditions), paper_stack(model, x, [1, 2, 1, 2], **conditions)
    assert_close(y, expected, **CLOSE)
    leaves, dy = [x, *conditions.values(), *model.parameters()], torch.randn_like(y)
    got, want = (torch.autograd.grad(v, leaves, dy) for v in (y, expected))
    for dg, dw in zip(got, want, strict=True):
        assert (dw != 0).any()
        assert_close(dg, dw, **CLOSE)


def test_blocks_one_by_one_are_the_stack(kinds):
    """A block alone takes the conditions too; a stack only hands them on."""
    model = conditioned(WaveNet, kinds, 2, 3, 4, layers=2, blocks=2)
    conditions = make_conditions(kinds, 2, 9)
    x, total = model.input(randn(2, 2, 9)), 0
    expected = model.skips(x, **conditions)
    for block in model.blocks:
        x, skip = block(x, **conditions)
        total = total + skip
    assert_close(total, expected, **CLOSE)


def test_weights_have_plain_names():
    with_both = set(conditioned(WaveNet, KINDS[2], 1, 2, layers=2, blocks=1).state_dict())
    without = set(WaveNet(1, 2, layers=2, blocks=1).state_dict())
    assert with_both - without == {
        f"blocks.{i}.{kind}_condition.weight" for i in range(2) for kind in CHANNELS
    }
    assert without < with_both
    block = conditioned(WaveNetBlock, KINDS[2], 4)
    assert block.local_condition.weight.shape == (8, 3, 1)
    assert block.global_condition.weight.shape == (8, 5)


def test_conditions_do_not_move_the_other_initial_values():
    """The first block's other weights are drawn first."""
    torch.manual_seed(3)
    plain = WaveNetBlock(4, dtype=torch.double).state_dict()
    torch.manual_seed(3)
    both = conditioned(WaveNetBlock, KINDS[2], 4).state_dict()
    for name, value in plain.items():
        assert_close(both[name], value, rtol=0, atol=0)


def test_a_local_condition_acts_from_its_step_on():
    model = conditioned(WaveNet, ("local",), 1, 2, residual_channels=8, layers=2, blocks=1)
    x, conditions = randn(1, 1, 9), make_conditions(("local",), 1, 9)
    (local,) = conditions.values()
    (dh,) = torch.autograd.grad(model(x, **conditions)[..., 6].sum(), local)
    # The last block reads steps 6 and 4 of the first block, which has no lag to the condition.
    for step in range(9):
        assert bool((dh[..., step] != 0).any()) == (step in (4, 6)), step


def test_gradcheck(kinds):
    block = conditioned(WaveNetBlock, kinds, 2, dilation=2)
    model = conditioned(WaveNet, kinds, 1, 1, residual_channels=2, layers=2, blocks=1)
    for layer, channels in ((block, 2), (model, 1)):
        conditions = make_conditions(kinds, 1, 4)

        def call(x, *values, layer=layer, conditions=conditions):
            return layer(x, **dict(zip(conditions, values, strict=True)))

        assert gradcheck(call, (randn(1, channels, 4), *conditions.values()))
        assert gradgradcheck(call, (randn(1, channels, 4), *conditions.values()))


def test_fullgraph_compile(kinds):
    model = conditioned(WaveNet, kinds, 1, 2, residual_channels=4, layers=2, blocks=2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, conditions = randn(2, 1, 9), make_conditions(kinds, 2, 9)
    y, expected = compiled(x, **conditions), model(x, **conditions)
    assert_close(y, expected, **CLOSE)
    leaves = [x, *conditions.values()]
    got, want = (torch.autograd.grad(v.square().sum(), leaves) for v in (y, expected))
    for dg, dw in zip(got, want, strict=True):
        assert_close(dg, dw, **CLOSE)


def test_vmap_and_unbatched(kinds):
    model = conditioned(WaveNet, kinds, 1, 2, residual_channels=4, layers=2, blocks=1)
    x, conditions = randn(3, 1, 9), make_conditions(kinds, 3, 9)
    expected = model(x, **conditions)

    def call(x, *values):
        return model(x, **dict(zip(conditions, values, strict=True)))

    assert_close(vmap(call)(x, *conditions.values()), expected, **CLOSE)
    for i, row in enumerate(x):
        one = {name: value[i] for name, value in conditions.items()}
        assert_close(model(row, **one), expected[i], **CLOSE)
    block = conditioned(WaveNetBlock, kinds, 1)
    alone = {name: value[0] for name, value in conditions.items()}
    for single, whole in zip(block(x[0], **alone), block(x, **conditions), strict=True):
        assert_close(single, whole[0], **CLOSE)


@pytest.mark.parametrize(("N", "L"), [(0, 5), (2, 0), (0, 0)])
def test_empty(kinds, N, L):
    model = conditioned(WaveNet, kinds, 2, 3, residual_channels=4, layers=2, blocks=1)
    x, conditions = randn(N, 2, L), make_conditions(kinds, N, L)
    y = model(x, **conditions)
    assert y.shape == (N, 3, L)
    y.sum().backward()
    for leaf in (x, *conditions.values()):
        assert leaf.grad.shape == leaf.shape


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_half_dtypes_and_autocast(kinds, dtype):
    model = conditioned(WaveNet, kinds, 1, 2, residual_channels=8, layers=2, blocks=1).float()
    x = torch.randn(2, 1, 9)
    conditions = {k: v.detach().float() for k, v in make_conditions(kinds, 2, 9).items()}
    expected = model(x, **conditions)
    with torch.autocast("cpu", dtype):
        under_autocast = model(x, **conditions)
    halves = {k: v.to(dtype) for k, v in conditions.items()}
    # Eight products in a row, each rounding values near 1.
    bound = 8 * 16**0.5 * torch.finfo(dtype).eps
    for y in (under_autocast, copy.deepcopy(model).to(dtype)(x.to(dtype), **halves)):
        assert y.dtype == dtype
        assert_close(y.float(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("kinds", "given", "message"),
    [
        (("local",), {}, r"local_condition must be \(2, 3, 9\), got None"),
        (("global",), {}, r"global_condition must be \(2, 5\), got None"),
        (("local",), {"local": (2, 3, 8)}, r"local_condition must be \(2, 3, 9\), got \(2, 3, 8\)"),
        (("local",), {"local": (2, 3)}, r"local_condition must be \(2, 3, 9\), got \(2, 3\)"),
        (("local",), {"local": (1, 3, 9)}, r"local_condition must be .* got \(1, 3, 9\)"),
        (("global",), {"global": (2, 4)}, r"global_condition must be \(2, 5\), got \(2, 4\)"),
        (("global",), {"global": (2, 5, 1)}, r"global_condition must be .* got \(2, 5, 1\)"),
        ((), {"local": (2, 3, 9)}, r"local_condition must not be given, as local_channels is None"),
        ((), {"global": (2, 5)}, r"global_condition must not be given, .* got \(2, 5\)"),
    ],
)
def test_errors(kinds, given, message):
    x = torch.zeros(2, 4, 9, dtype=torch.double)
    values = {f"{k}_condition": torch.zeros(v, dtype=torch.double) for k, v in given.items()}
    for layer in (conditioned(WaveNet, kinds, 4, 2, 4), conditioned(WaveNetBlock, kinds, 4)):
        with pytest.raises(ValueError, match=f"^{message}"):
            layer(x, **values)


@pytest.mark.parametrize("name", ["local_channels", "global_channels"])
def test_channels_are_checked(name):
    message = f"^{name} must be an integer of at least 1, got 0"
    for kind, arguments in ((WaveNet, (1, 2)), (WaveNetBlock, (4,))):
        with pytest.raises(ValueError, match=message):
            kind(*arguments, **{name: 0})
