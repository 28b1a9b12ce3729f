"""WaveNet.generate is the stack run anew for every value, at the cost of one step each."""

import copy
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rnnkit
from rnnkit.layers.conv import CausalConv1d
from rnnkit.layers.wavenet import WaveNet

LOCAL, GLOBAL = 3, 2


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def reference():
    """The convolutions have tests of their own, and kernels in the interpreter would be slow."""
    with rnnkit.backend("reference"):
        yield


def make(in_channels=2, out_channels=2, layers=3, blocks=2, dtype=torch.double, **options):
    """Weights small enough that rounding does not grow from step to step into something else."""
    model = WaveNet(in_channels, out_channels, 4, 5, layers=layers, blocks=blocks, **options)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.4)
    return model.to(dtype)


class Driven:
    """A sample function: the output and a given noise, so that a series never settles."""

    def __init__(self, N, C, steps):
        self.noise, self.outputs = torch.randn(steps, N, C, dtype=torch.double), []

    def __call__(self, output):
        self.outputs.append(output)
        return output / 2 + self.noise[len(self.outputs) - 1]

    def outcome(self):
        """All outputs so far; the noise starts over."""
        outputs, self.outputs = self.outputs, []
        return torch.stack(outputs, 2)


def make_conditions(model, N, L):
    found = {}
    if model.local_channels is not None:
        found["local_condition"] = torch.randn(N, model.local_channels, L).double()
    if model.global_channels is not None:
        found["global_condition"] = torch.randn(N, model.global_channels).double()
    return found


def anew(model, context, steps, sample, **conditions):
    """The whole past for every value."""
    values, local = context, conditions.pop("local_condition", None)
    for _ in range(steps):
        if local is not None:
            conditions["local_condition"] = local[..., : values.shape[2]]
        with torch.no_grad():
            output = model(values, **conditions)[..., -1]
        value = output if sample is None else sample(output)
        values = torch.cat([values, value[..., None]], 2)
    return values[..., context.shape[2] :]


CONFIGURATIONS = {
    "K2": {"kernel_size": 2},
    "K3": {"kernel_size": 3},
    "K1": {"kernel_size": 1},
    "K5-one-layer": {"kernel_size": 5, "layers": 1, "blocks": 1},
    "K2-local": {"kernel_size": 2, "local_channels": LOCAL},
    "K2-global": {"kernel_size": 2, "global_channels": GLOBAL},
    "K3-both": {"kernel_size": 3, "local_channels": LOCAL, "global_channels": GLOBAL},
}


@pytest.mark.parametrize("before", ["one", "some", "reach", "far"])
@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_equals_the_whole_past_for_every_step(options, before):
    model = make(**options)
    reach = model.receptive_field
    L, steps = {"one": 1, "some": 5, "reach": reach, "far": 3 * reach + 1}[before], 256
    context = torch.randn(2, 2, L, dtype=torch.double)
    conditions = make_conditions(model, 2, L + steps - 1)
    driven = Driven(2, 2, steps)
    values = model.generate(context, steps, sample=driven, **conditions)
    outputs = driven.outcome()
    assert values.shape == (2, 2, steps)
    assert not values.requires_grad
    # The stack has not died, so an error in any step would show.
    assert (outputs[..., -20:].std(2) > 1e-3).any(1).all()
    expected = anew(model, context, steps, driven, **conditions)
    assert_close(values, expected, rtol=0, atol=1e-10)
    assert_close(outputs, driven.outcome(), rtol=0, atol=1e-10)


def test_without_sample_the_output_is_the_next_input():
    model, context = make(), torch.randn(1, 2, 9, dtype=torch.double)
    values = model.generate(context, 20)
    assert_close(values, anew(model, context, 20, None), rtol=0, atol=1e-10)


def test_sample_makes_an_input_of_other_channels():
    """As the paper's: scores of classes, of which one is drawn and goes in."""
    model, context = make(1, 7), torch.randn(3, 1, 9, dtype=torch.double)
    given = []

    def sample(output):
        given.append(output)
        return output.argmax(1, keepdim=True) / 7

    values = model.generate(context, 30, sample=sample)
    assert {output.shape for output in given} == {(3, 7)}
    assert_close(values, anew(model, context, 30, lambda v: v.argmax(1, True) / 7))


@pytest.mark.parametrize("L", [1, 40])
def test_no_steps_and_one(L):
    model = make(local_channels=LOCAL)
    context = torch.randn(2, 2, L, dtype=torch.double)
    conditions = make_conditions(model, 2, L)
    assert model.generate(context, 0, **conditions).shape == (2, 2, 0)
    expected = model(context, **conditions)[..., -1:]
    assert_close(model.generate(context, 1, **conditions), expected, rtol=0, atol=1e-10)


def test_a_longer_local_condition_is_cut():
    model, context = make(local_channels=LOCAL), torch.randn(2, 2, 4, dtype=torch.double)
    local = torch.randn(2, LOCAL, 30, dtype=torch.double)
    expected = model.generate(context, 9, local_condition=local[..., :12])
    found = model.generate(context, 9, local_condition=local)
    assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.float])
def test_dtypes_and_autocast(dtype):
    model, context = make(global_channels=GLOBAL), torch.randn(2, 2, 9)
    h = torch.randn(2, GLOBAL)
    expected = model.generate(context.double(), 4, sample=torch.tanh, global_condition=h.double())
    model = copy.deepcopy(model).to(dtype)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            values = model.generate(
                context.to(dtype), 4, sample=torch.tanh, global_condition=h.to(dtype)
            )
        assert values.dtype == dtype
        # Four steps of nine products with values of some units each.
        assert_close(values.double(), expected, rtol=0, atol=4 * 9 * 4 * torch.finfo(dtype).eps)


def test_empty_batch():
    model = make(local_channels=LOCAL)
    context, local = torch.zeros(0, 2, 3).double(), torch.zeros(0, LOCAL, 7).double()
    assert model.generate(context, 5, local_condition=local).shape == (0, 2, 5)


def test_model_and_context_stay_as_they_are():
    model, context = make(), torch.randn(1, 2, 9, dtype=torch.double)
    before, copied = copy.deepcopy(model.state_dict()), context.clone()
    model.train()
    model.blocks[0].eval()
    modes = [m.training for m in model.modules()]
    model.generate(context, 20, sample=torch.tanh)
    assert [m.training for m in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert_close(context, copied, rtol=0, atol=0)
    assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_parametrized_weights():
    model, context = make(), torch.randn(1, 2, 9, dtype=torch.double)
    expected = model.generate(context, 9, sample=torch.tanh)
    for block in model.blocks:
        torch.nn.utils.parametrizations.weight_norm(block.conv)
    found = model.generate(context, 9, sample=torch.tanh)
    assert_close(found, expected, rtol=0, atol=1e-10)


class Work(TorchDispatchMode):
    """Counts operators, and the bytes of what they take and give."""

    def __init__(self):
        super().__init__()
        self.done = (0, 0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        # A view touches nothing of what it is taken from, nor does new memory.
        if not function.is_view and function is not torch.ops.aten.new_empty.default:
            tensors = [v for v in tree_leaves((args, result)) if isinstance(v, torch.Tensor)]
            count, size = self.done
            self.done = count + 1, size + sum(v.numel() * v.element_size() for v in tensors)
        return result


@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_every_step_is_the_same_work(options):
    """However many came before: nothing is shifted, copied or computed anew."""
    model, totals = make(**options), []
    context = torch.randn(2, 2, 9, dtype=torch.double)

    def sample(output):
        totals.append(work.done)
        return output

    conditions = make_conditions(model, 2, 9 + 220)
    with Work() as work:
        model.generate(context, 220, sample=sample, **conditions)
    steps = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in pairwise(totals[1:])]
    assert len(set(steps)) == 1
    assert steps[10] == steps[200]
    count, size = steps[10]
    # A few operators a block and less than ten around; the weights, and some activations.
    D = len(model.blocks)
    assert count <= 6 * D + 12
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert size < 4 * weights


def test_the_start_is_the_same_work_after_any_context():
    """The rings hold a receptive field, not what came before."""
    model = make()
    sizes = []
    for L in (40, 4000):
        context = torch.randn(1, 2, L, dtype=torch.double)
        with Work() as work:
            model.generate(context, 1)
        sizes.append(work.done)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"context": (2, 2, 0)}, r"context must be \(N, 2, L\) with .* 1, got \(2, 2, 0\)"),
        ({"context": (2, 3, 5)}, r"context must be \(N, 2, L\) .* got \(2, 3, 5\)"),
        ({"context": (2, 5)}, r"context must be \(N, 2, L\) .* got \(2, 5\)"),
        ({"steps": -1}, r"steps must be an integer of at least 0, got -1"),
        ({"steps": 2.0}, r"steps must be an integer of at least 0, got 2\.0"),
        ({"sample": lambda v: v[:, :1]}, r"sample must return \(2, 2\), got \(2, 1\)"),
        ({"sample": lambda v: v[..., None]}, r"sample must return \(2, 2\), got \(2, 2, 1\)"),
        ({"local": (2, LOCAL, 7)}, r"local_condition must be \(2, 3, 8\), got \(2, 3, 7\)"),
        ({"local": (2, 4, 9)}, r"local_condition must be \(2, 3, 9\), got \(2, 4, 9\)"),
        ({"local": (2,)}, r"local_condition must be \(2, 3, 8\), got \(2,\)"),
        ({"local": None}, r"local_condition must be \(2, 3, 8\), got None"),
        ({"same": (1, GLOBAL)}, r"global_condition must be \(2, 2\), got \(1, 2\)"),
        ({"same": None}, r"global_condition must be \(2, 2\), got None"),
    ],
)
def test_errors(changed, message):
    sizes = {"context": (2, 2, 5), "local": (2, LOCAL, 8), "same": (2, GLOBAL), **changed}
    model = make(local_channels=LOCAL, global_channels=GLOBAL)
    context, local, same = (
        None if sizes[name] is None else torch.zeros(sizes[name], dtype=torch.double)
        for name in ("context", "local", "same")
    )
    with pytest.raises(ValueError, match=f"^{message}"):
        model.generate(
            context,
            sizes.get("steps", 4),
            local_condition=local,
            global_condition=same,
            sample=sizes.get("sample"),
        )


def test_unwanted_conditions_and_missing_sample():
    context = torch.zeros(1, 2, 5, dtype=torch.double)
    with pytest.raises(ValueError, match=r"^global_condition must not be given"):
        make().generate(context, 1, global_condition=torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"^sample must be given, to make an input of 2 .* of 7$"):
        make(2, 7).generate(context, 1)


@pytest.mark.parametrize("part", ["input", "blocks.1", "blocks.1.conv", "hidden", "output"])
def test_hooks_and_other_modules_are_refused(part):
    """They would not run, and a result without them would be wrong."""
    model, context = make(), torch.zeros(1, 2, 5, dtype=torch.double)
    handle = model.get_submodule(part).register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match=r"^generate reads the weights .* none may have a hook"):
        model.generate(context, 1)
    handle.remove()
    model.generate(context, 1)
    model.output = torch.nn.Sequential(CausalConv1d(5, 2, 1, dtype=torch.double))
    model.output.out_channels = 2
    with pytest.raises(ValueError, match=r"^generate reads the weights"):
        model.generate(context, 1)
