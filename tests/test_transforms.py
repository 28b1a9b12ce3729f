"""torch.func and derivatives of derivatives, through whole layers."""

import copy

import pytest
import torch
from layer_variants import (
    assert_same,
    close,
    every_choice,
    forced,
    joined,
    leaves,
    main_run,
    main_variant,
    plain_variant,
    randn,
    run,
    states,
)
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import rnnkit

T, B, I, H = 4, 3, 2, 4  # noqa: E741


def call(module, x, **given):
    return module(x, joined(given))


def tensors_of(variant, steps=T, rows=1):
    return {"x": randn(steps, B, I)} | states(variant, rows, B, hidden=H)


def loop(function, *stacked):
    """What vmap should give: the function on each slice, stacked."""
    slices = zip(*(v.unbind(0) for v in stacked), strict=True)
    results = [leaves(function(*parts)) for parts in slices]
    return [torch.stack(v) for v in zip(*results, strict=True)]


@main_run
def test_vmap_over_inputs(variant, on):
    module = variant.layer(I, H, 2, bidirectional=True)
    x = randn(5, T, B, I)
    with forced(on):
        found, expected = leaves(vmap(module)(x)), loop(module, x)
        inner = leaves(vmap(module, in_dims=2)(x.permute(1, 2, 0, 3)))
    assert_same((found, {}), (expected, {}))
    assert_same((inner, {}), (expected, {}))


@main_run
def test_vmap_over_states(variant, on):
    """Initial states are mapped, the input is not."""
    module, x = variant.layer(I, H), randn(T, B, I)
    s = tuple(states(variant, 5, 1, B, hidden=H).values())

    def function(*s):
        return module(x, s if len(s) > 1 else s[0])

    with forced(on):
        assert_same((leaves(vmap(function)(*s)), {}), (loop(function, *s), {}))


@main_run
def test_vmap_over_cell(variant, on):
    module, x = variant.one(I, H), randn(5, B, I)
    with forced(on):
        assert_same((leaves(vmap(module)(x)), {}), (loop(module, x), {}))


def ensemble(variant, size=3):
    """Layers of different weights, their stacked parameters, and the call of one member."""
    members = [variant.layer(I, H, 2, bidirectional=True) for _ in range(size)]
    with torch.no_grad():
        for k, member in enumerate(members):
            for parameter in member.parameters():
                parameter.mul_(1 - 0.2 * k)
    parameters, buffers = stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")
    return members, parameters, lambda p, x: functional_call(skeleton, (p, buffers), (x,))


@pytest.mark.parametrize("shared", [True, False], ids=["one input", "an input each"])
@main_run
def test_vmap_over_parameters(variant, shared, on):
    """An ensemble is one call; its gradients are the members'."""
    members, parameters, member_call = ensemble(variant)
    x = randn(T, B, I) if shared else randn(len(members), T, B, I)
    with forced(on):
        results = leaves(vmap(member_call, in_dims=(0, None if shared else 0))(parameters, x))
        total = sum(v.sin().sum() for v in results)
        gradients = torch.autograd.grad(total, list(parameters.values()))
        for k, member in enumerate(members):
            expected = leaves(member(x if shared else x[k]))
            assert_same(([v[k] for v in results], {}), (expected, {}))
            sum(v.sin().sum() for v in expected).backward()
            for (name, value), stacked in zip(member.named_parameters(), gradients, strict=True):
                close(stacked[k], value.grad, 1e-10, name)


@main_run
def test_per_sample_gradients(variant, on):
    """vmap(grad(...)) over the batch equals a loop of backward passes."""
    module = variant.layer(I, H, 2, bidirectional=True)
    parameters = {name: value.detach() for name, value in module.named_parameters()}

    def loss(parameters, x):
        return sum(v.sin().sum() for v in leaves(functional_call(module, parameters, (x,))))

    x = randn(T, B, I)
    with forced(on):
        found = vmap(grad(loss), in_dims=(None, 1))(parameters, x)
        for b in range(B):
            module.zero_grad()
            loss(dict(module.named_parameters()), x[:, b]).backward()
            for name, value in module.named_parameters():
                close(found[name][b], value.grad, 1e-10, name)


def flat_call(variant, module, tensors):
    """The layer's call and its tensors and parameters, as gradcheck takes them."""
    names = [name for name, _ in module.named_parameters()]

    def function(*values):
        parameters = dict(zip(names, values[len(tensors) :], strict=True))
        given = dict(zip(tensors, values[: len(tensors)], strict=True))
        args = (given.pop("x"), joined(given))
        return tuple(leaves(functional_call(module, parameters, args)))

    values = (*tensors.values(), *(p.detach() for p in module.parameters()))
    return function, tuple(v.clone().requires_grad_() for v in values)


@main_run
def test_second_derivatives(variant, on):
    module = variant.layer(2, 2, bidirectional=True)
    tensors = {"x": randn(2, 2, 2)} | states(variant, 2, 2, hidden=2)
    function, values = flat_call(variant, module, tensors)
    with forced(on):
        assert gradcheck(function, values, fast_mode=True)
        assert gradgradcheck(function, values, fast_mode=True)


@every_choice
@plain_variant
def test_gradient_penalty_as_torch(variant, on):
    """The double backward that users meet: a penalty on the input's gradient."""

    def penalty(module, x, **given):
        total = sum(v.sin().sum() for v in leaves(call(module, x, **given)))
        return torch.autograd.grad(total, x, create_graph=True)[0].square().sum()

    tensors = tensors_of(variant, rows=2)
    ours, theirs = (make(I, H, 2) for make in (variant.layer, variant.twin))
    assert_same(run(ours, penalty, tensors, on), run(theirs, penalty, tensors))


def forward_dual(module, x):
    with forward_ad.dual_level():
        result = module(forward_ad.make_dual(x, torch.ones_like(x)))[0]
        return forward_ad.unpack_dual(result).tangent


FORWARD_MODE = {
    "jvp": lambda module, x: jvp(lambda v: module(v)[0], (x,), (torch.ones_like(x),))[1],
    "jacfwd": lambda module, x: jacfwd(lambda v: module(v)[0])(x),
    "dual numbers": forward_dual,
    "dual numbers in no_grad": torch.no_grad()(forward_dual),
}


@pytest.mark.parametrize("mode", FORWARD_MODE)
@main_run
def test_forward_mode(variant, mode, on):
    """Tangents are right, whatever dispatch would choose without them."""
    module, x = variant.layer(I, H), randn(2, 2, I)
    with forced(on):
        tangent = FORWARD_MODE[mode](module, x)
    jacobian = torch.autograd.functional.jacobian(lambda v: module(v)[0], x)
    expected = jacobian if mode == "jacfwd" else jacobian.sum((3, 4, 5))
    close(tangent, expected, 1e-10, "tangent")


@main_variant
def test_hessian(variant):
    """Forward over reverse mode, with lengths and resets, equals reverse over reverse."""
    module = variant.layer(1, 3, bidirectional=True)
    lengths, resets = torch.tensor([2, 3]), randn(3, 2) > 0.5

    def loss(x):
        return module(x, lengths=lengths, resets=resets)[0].sin().sum()

    x = randn(3, 2, 1)
    found, expected = jacfwd(jacrev(loss))(x), torch.autograd.functional.hessian(loss, x)
    close(found, expected, 1e-10, "hessian")


@pytest.mark.parametrize("shape", [(0, B, I), (T, 0, I)], ids=str)
def test_forward_mode_of_nothing(shape):
    module, x = rnnkit.GRU(I, H, dtype=torch.double), torch.zeros(shape, dtype=torch.double)
    assert FORWARD_MODE["jvp"](module, x).shape == (*shape[:2], H)


def test_forward_mode_is_refused_by_kernels():
    module = rnnkit.LSTM(I, H, dtype=torch.double)
    with (
        rnnkit.backend("triton"),
        pytest.raises(RuntimeError, match="triton: its kernels have no forward-mode"),
    ):
        FORWARD_MODE["jvp"](module, randn(T, B, I))


def test_ensemble_is_one_scan():
    """16 models under vmap: one call of the operator a layer, with all of them as groups."""
    size, scans = 16, []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.namespace == "rnnkit":
                scans.append((function.__name__, args))
            return function(*args, **(kwargs or {}))

    members = [rnnkit.GRU(I, H, dtype=torch.double) for _ in range(size)]
    parameters, buffers = stack_module_state(members)
    skeleton, x = copy.deepcopy(members[0]).to("meta"), randn(T, B, I)

    def member(p):
        return functional_call(skeleton, (p, buffers), (x,))[0]

    with Count():
        found = vmap(member)(parameters)
        gradients = torch.autograd.grad(found.sin().sum(), list(parameters.values()))
    assert [name for name, _ in scans] == ["scan.default", "scan_backward.default"]
    assert scans[0][1][0].shape[2] == size, "the members are the groups"
    for k, one in enumerate(members):
        close(found[k], one(x)[0], 1e-12, f"member {k}")
        one(x)[0].sin().sum().backward()
        for value, (name, parameter) in zip(gradients, one.named_parameters(), strict=True):
            close(value[k], parameter.grad, 1e-12, f"{name} of member {k}")
