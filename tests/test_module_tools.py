"""What torch offers around modules works on our layers: parametrizations, hooks, checkpoints."""

import copy

import pytest
import torch
from layer_variants import (
    assert_same,
    close,
    every_choice,
    every_run,
    every_variant,
    joined,
    leaves,
    plain_variant,
    randn,
    run,
    states,
)
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

T, B, I, H = 5, 3, 4, 6  # noqa: E741
WEIGHT = "weight_hh_l0"


class Squashed(torch.nn.Module):
    def forward(self, weight):
        return torch.tanh(weight) * 0.5


def squash(module):
    parametrize.register_parametrization(module, WEIGHT, Squashed())


def old_weight_norm(module):
    with pytest.warns(FutureWarning, match="weight_norm"):
        torch.nn.utils.weight_norm(module, WEIGHT)


WRAPPERS = {
    "parametrization": squash,
    "weight_norm": lambda module: parametrizations.weight_norm(module, WEIGHT),
    "hook weight_norm": old_weight_norm,
    "spectral_norm": lambda module: parametrizations.spectral_norm(module.eval(), WEIGHT),
}


def call(module, x, **given):
    return module(x, joined(given))


def tensors_of(variant, rows=1):
    return {"x": randn(T, B, I)} | states(variant, rows, B, hidden=H)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@every_run
def test_parametrized_weight(variant, wrapper, on):
    """The layer runs on the computed weight, and the gradient passes through to the originals."""
    module, plain, tensors = variant.layer(I, H), variant.layer(I, H), tensors_of(variant)
    WRAPPERS[wrapper](module)
    assert WEIGHT not in dict(module.named_parameters())
    with torch.no_grad():
        call(module, **tensors)
        plain.weight_hh_l0.copy_(module.weight_hh_l0)
    found, expected = run(module, call, tensors, on), run(plain, call, tensors, on)
    originals = [v for name, v in module.named_parameters() if WEIGHT in name]
    call(module, **tensors)  # the hook's weight belongs to the graph of the latest call
    through = torch.autograd.grad(module.weight_hh_l0, originals, expected[1].pop(WEIGHT))
    names = [name for name, _ in module.named_parameters() if WEIGHT in name]
    assert_same(found, (expected[0], expected[1] | dict(zip(names, through, strict=True))))


@every_choice
@plain_variant
def test_parametrized_as_torch(variant, on):
    ours, theirs = variant.layer(I, H), variant.twin(I, H)
    for module in (ours, theirs):
        parametrizations.weight_norm(module, WEIGHT)
    tensors = tensors_of(variant)
    assert_same(run(ours, call, tensors, on), run(theirs, call, tensors))


@pytest.mark.parametrize("single", [False, True], ids=["layer", "cell"])
@every_variant
def test_hooks(variant, single):
    module = (variant.one if single else variant.layer)(I, H)
    x, seen = randn(*((B, I) if single else (T, B, I))), []
    expected = leaves(module(2 * x))
    handles = [
        module.register_forward_pre_hook(lambda m, args: (2 * args[0],)),
        module.register_forward_hook(lambda m, args, result: seen.append(("forward", result))),
        module.register_full_backward_hook(lambda m, gi, go: seen.append(("backward", gi))),
    ]
    leaf = x.clone().requires_grad_()
    found = module(leaf)
    assert_same((leaves(found), {}), (expected, {}), 0.0)
    sum(v.sum() for v in leaves(found)).backward()
    assert [event for event, _ in seen] == ["forward", "backward"]
    close(leaf.grad, 2 * seen[1][1][0], 1e-12, "input")
    for handle in handles:
        handle.remove()
    assert_same((leaves(module(x)), {}), (leaves(module(x)), {}), 0.0)
    assert len(seen) == 2


@every_run
def test_functional_call(variant, on):
    """Runs on the parameters given, gives them the gradients, and leaves the module's alone."""
    module, other, tensors = variant.layer(I, H, 2), variant.layer(I, H, 2), tensors_of(variant, 2)
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        for k, parameter in enumerate(other.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=k))

    def substituted(other, x, **given):
        return functional_call(module, dict(other.named_parameters()), (x, joined(given)))

    assert_same(run(other, substituted, tensors, on), run(other, call, tensors, on), 0.0, 0.0)
    assert all(torch.equal(v, before[name]) for name, v in module.state_dict().items())


@every_run
def test_checkpoint(variant, on):
    """Recomputed in backward, dropout's mask included."""
    module, tensors = variant.layer(I, H, 2, dropout=0.5), tensors_of(variant, 2)

    def directly(module, x, **given):
        torch.manual_seed(0)
        return call(module, x, **given)

    def recomputed(module, x, **given):
        torch.manual_seed(0)
        return checkpoint(call, module, x, **given, use_reentrant=False)

    assert_same(run(module, recomputed, tensors, on), run(module, directly, tensors, on))
