"""Our recurrent layers behave as any torch module: copies, files, frozen and shared weights."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from layer_variants import (
    RUNS,
    VARIANTS,
    assert_gradients_add_up,
    assert_same,
    close,
    every_choice,
    every_run,
    every_variant,
    forced,
    joined,
    leaves,
    plain_variant,
    randn,
    run,
    states,
)

T, B, I, H = 5, 3, 4, 6  # noqa: E741
WEIGHT = "weight_hh_l0"


def call(module, x, **given):
    return module(x, joined(given))


def tensors_of(variant, rows=1):
    return {"x": randn(T, B, I)} | states(variant, rows, B, hidden=H)


def cases(runs):
    """The layer and the cell of every variant and choice of backend, with matching tensors."""
    for variant, *on in runs:
        name = "-".join([variant.cell, *on])
        yield pytest.param(variant.layer, tensors_of(variant), *on, id=name)
        one = {"x": randn(B, I)} | states(variant, B, hidden=H)
        yield pytest.param(variant.one, one, *on, id=f"cell-{name}")


every_case = pytest.mark.parametrize(("make", "tensors"), list(cases((v,) for v in VARIANTS)))
every_case_run = pytest.mark.parametrize(("make", "tensors", "on"), list(cases(RUNS)))


def through_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_state_dict(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(module)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": through_file,
    "state_dict": through_state_dict,
}


@pytest.mark.parametrize("way", COPIES)
@every_case
def test_copies(make, tensors, way):
    module = make(I, H).eval()
    expected = run(module, call, tensors)
    other = COPIES[way](module)
    assert repr(other) == repr(module)
    assert not other.training
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert_same(run(other, call, tensors), expected, 0.0, 0.0)


@every_case
def test_state_dict_is_strict(make, tensors):
    module = make(I, H)
    state = module.state_dict()
    for name in state:
        with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
            module.load_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight_xx"):
        module.load_state_dict(state | {"weight_xx": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"size mismatch for weight_ih"):
        make(I + 1, H).load_state_dict(state)


@every_case_run
def test_backward_in_eval(make, tensors, on):
    module = make(I, H)
    expected = run(module.train(), call, tensors, on)
    assert_same(run(module.eval(), call, tensors, on), expected, 0.0, 0.0)


@every_case_run
def test_backward_twice(make, tensors, on):
    """A second backward over what the first saved gives the same gradients."""
    module = make(I, H)
    given = {k: v.clone().requires_grad_() for k, v in tensors.items()}
    with forced(on):
        total = sum(v.sin().sum() for v in leaves(call(module, **given)))
        sources = [*module.parameters(), *given.values()]
        first = torch.autograd.grad(total, sources, retain_graph=True)
        second = torch.autograd.grad(total, sources)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_case_run
def test_gradients_add_up_in_place(make, tensors, on):
    def prepare():
        module = make(I, H)

        def step():
            with forced(on):
                sum(v.sin().sum() for v in leaves(call(module, **tensors))).backward()

        return dict(module.named_parameters()), step

    assert_gradients_add_up(prepare)


def subsets(size):
    """Every subset where that is feasible; else none, all, each alone, and all but each."""
    if size <= 6:
        return list(itertools.product((True, False), repeat=size))
    alone = [tuple(k == i for k in range(size)) for i in range(size)]
    others = [tuple(not v for v in one) for one in alone]
    return [(False,) * size, (True,) * size, *alone, *others]


@every_case_run
def test_any_subset_frozen(make, tensors, on):
    """Whatever needs no gradient gets none, and the others' are the same."""
    module = make(I, H)
    expected = run(module, call, tensors, on)[1]
    names = [name for name, _ in module.named_parameters()] + list(tensors)
    for kept in subsets(len(names)):
        wanted = dict(zip(names, kept, strict=True))
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(wanted[name]).grad = None
        given = {k: v.clone().requires_grad_(wanted[k]) for k, v in tensors.items()}
        with forced(on):
            results = leaves(call(module, **given))
            assert all(v.requires_grad == any(kept) for v in results)
            if any(kept):
                arriving = [randn(*v.shape, seed=50 + k) for k, v in enumerate(results)]
                torch.autograd.backward(results, arriving)
        for name, value in (dict(module.named_parameters()) | given).items():
            assert (value.grad is not None) == wanted[name]
            if wanted[name]:
                close(value.grad, expected[name], 1e-12, name)


def strided(shape):
    """Tensors of that shape in unusual layouts, by name."""
    T, B, size = shape
    yield "transposed", randn(B, size, T).permute(2, 0, 1)
    yield "every second", randn(2 * T, 2 * B, 2 * size)[::2, 1::2, ::2]
    yield "expanded over all rows", randn(T, 1, size).expand(shape)
    yield "expanded over all steps", randn(1, B, size).expand(shape)
    yield "expanded over all features", randn(T, B, 1).expand(shape)
    yield "one value", randn(1, 1, 1).expand(shape)


@pytest.mark.parametrize("layout", [name for name, _ in strided((1, 1, 1))])
@every_run
def test_layouts(variant, layout, on):
    """Inputs and states in any layout, the output's gradient in any layout."""
    module = variant.layer(I, H, 2, bidirectional=True)
    x = dict(strided((T, B, I)))[layout]
    s = tuple(dict(strided((4, B, size)))[layout] for size in variant.sizes(H))
    results = []
    for prepare in (lambda v: v, lambda v: v.contiguous().clone()):
        given = [prepare(v).detach().requires_grad_() for v in (x, *s)]
        hx = given[1] if len(s) == 1 else tuple(given[1:])
        with forced(on):
            found = leaves(module(given[0], hx))
            arriving = [prepare(dict(strided(v.shape))[layout]) for v in found]
            sources = [*module.parameters(), *given]
            gradients = torch.autograd.grad(found, sources, arriving)
        results.append((found, dict(enumerate(gradients))))
    # Another layout may be added up in another order.
    assert_same(*results, 1e-13, 1e-12)


@every_case_run
def test_arguments_are_not_modified(make, tensors, on):
    module = make(I, H)
    given = {k: v.clone().requires_grad_() for k, v in tensors.items()}
    held = {**given, **dict(module.named_parameters())}
    before = {k: (v.detach().clone(), v._version) for k, v in held.items()}
    with forced(on):
        sum(v.sum() for v in leaves(call(module, **given))).backward()
    for name, value in held.items():
        assert torch.equal(value, before[name][0]), name
        assert value._version == before[name][1], name


@every_variant
def test_ragged_arguments_are_not_modified(variant):
    module, x = variant.layer(I, H, bidirectional=True), randn(T, B, I)
    ragged = {"lengths": torch.tensor([2, 0, 5]), "resets": torch.ones(T, B, dtype=torch.bool)}
    held = {"x": x, **ragged}
    before = {name: value.clone() for name, value in held.items()}
    sum(v.sum() for v in leaves(module(x, **ragged))).backward()
    assert all(torch.equal(value, before[name]) for name, value in held.items())


def loss(module, tensors):
    return sum(v.sin().sum() for v in leaves(call(module, **tensors)))


@every_run
def test_parameter_shared_by_two_modules(variant, on):
    """Its gradient is the sum of both uses'."""
    first, second = variant.layer(I, H), variant.layer(I, H)
    torch.nn.init.normal_(second.weight_ih_l0)
    tensors = tensors_of(variant)
    with forced(on):
        for module in (first, second):
            loss(module, tensors).backward()
        expected = first.weight_hh_l0.grad + second.weight_hh_l0.grad
        second.weight_hh_l0 = first.weight_hh_l0
        first.weight_hh_l0.grad = None
        (loss(first, tensors) + loss(second, tensors)).backward()
    close(first.weight_hh_l0.grad, expected, 1e-12, WEIGHT)


@every_choice
@plain_variant
def test_parameter_shared_by_two_layers(variant, on):
    pair = [make(I, H, 2) for make in (variant.layer, variant.twin)]
    for module in pair:
        module.weight_hh_l1 = module.weight_hh_l0
        assert WEIGHT.replace("l0", "l1") in module.state_dict()
    tensors = tensors_of(variant, rows=2)
    assert_same(run(pair[0], call, tensors, on), run(pair[1], call, tensors))


@every_variant
def test_deterministic_algorithms(variant):
    """Nothing here refuses torch's strict mode, and two runs agree bit for bit."""
    options = {"zoneout": 0.2, "recurrent_dropout": 0.1, "weight_dropout": 0.1, "num_heads": 2}
    module = variant.layer(I, 4, 2, bidirectional=True, **options)
    ragged = {"lengths": torch.tensor([2, T]), "resets": randn(T, 2, seed=3) > 0.5}

    def seeded(module, x):
        torch.manual_seed(3)
        return module(x, **ragged)

    torch.use_deterministic_algorithms(True)
    first, second = (run(module, seeded, {"x": randn(T, 2, I)}) for _ in range(2))
    assert_same(second, first, 0.0, 0.0)
