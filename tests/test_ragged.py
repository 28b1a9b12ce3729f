"""Rows of their own length, sequences that begin anew inside a row, and nothing at all."""

from itertools import pairwise

import pytest
import torch
from layer_variants import (
    VARIANTS,
    assert_same,
    every_variant,
    joined,
    plain_variant,
    randn,
    run,
    states,
)
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkit

T, B, I, H = 6, 4, 3, 5  # noqa: E741
LENGTHS = torch.tensor([4, 0, 6, 1])
# Row 0 parts at its first step and inside; row 1 (of length 0) everywhere; row 2 at its last step
# and twice in a row; row 3 only in what a length of 1 makes padding.
RESETS = torch.zeros(T, B, dtype=torch.bool)
RESETS[[0, 2], 0] = RESETS[:, 1] = RESETS[[2, 3, 5], 2] = RESETS[[1, 4], 3] = True
RAGGED = {
    "lengths": (LENGTHS, None),
    "resets": (None, RESETS),
    "lengths-resets": (LENGTHS, RESETS),
}
both_ways = pytest.mark.parametrize("both", [False, True], ids=["forward", "bidirectional"])
batch_first = pytest.mark.parametrize("first", [False, True], ids=["time-first", "batch-first"])
given_hx = pytest.mark.parametrize("given", [True, False], ids=["hx", "nohx"])


def poisoned(x, lengths, first):
    """x with NaN in the padding."""
    steps = torch.arange(T)[:, None] >= lengths
    return x.masked_fill((steps.T if first else steps)[..., None], float("nan"))


def layer_call(lengths, resets, poison=False):
    """The layer's own call with lengths and resets, NaN in the padding."""

    def call(module, x, **given):
        first = module.batch_first and x.dim() == 3
        x = poisoned(x, lengths, first) if poison and lengths is not None else x
        turned = resets.T if resets is not None and first else resets
        return module(x, joined(given), lengths=lengths, resets=turned)

    return call


def piecewise(lengths, resets):
    """The definition: every piece of every row alone, as an unbatched sequence."""

    def call(module, x, **given):
        rows = x.unbind(0 if module.batch_first else 1)
        parts = []
        for b, row in enumerate(rows):
            end = T if lengths is None else int(lengths[b])
            cuts = [t for t in range(end) if resets is not None and resets[t, b]]
            state = tuple(v[:, b] for v in given.values())
            parts.append(run_row(module, row, state, cuts, end))
        outputs, finals = zip(*parts, strict=True)
        last = tuple(torch.stack(v, 1) for v in zip(*finals, strict=True))
        return torch.stack(outputs, 0 if module.batch_first else 1), last

    return call


def run_row(module, row, state, cuts, end):
    """The output (T, features) of one row, and its final states, each (layers * directions, H).

    A forward direction gets the initial state in the first piece, unless that begins with a cut,
    and ends with the last; a backward one the other way round.
    """
    width = (module.proj_size or module.hidden_size) * len(module.reverse)
    if end == 0:
        return row.new_zeros(T, width), state
    back = torch.tensor(module.reverse).repeat(module.num_layers)[:, None]
    edges = [0, *(t for t in cuts if t > 0), end]
    outputs, finals = [], []
    for start, stop in pairwise(edges):
        begins = (start == 0 and 0 not in cuts) & ~back | (stop == end) & back
        entered = tuple(torch.where(begins, v, 0) for v in state)
        hx = entered if len(entered) > 1 else entered[0]
        output, last = module(row[start:stop], hx)
        outputs.append(output)
        finals.append(last if isinstance(last, tuple) else (last,))
    ends = zip(finals[0], finals[-1], strict=True)
    final = tuple(torch.where(back, first, last) for first, last in ends)
    return torch.cat([*outputs, row.new_zeros(T - end, width)]), final


def tensors_of(variant, layer, first, given=True):
    rows = layer.num_layers * len(layer.reverse)
    x = {"x": randn(*((B, T, I) if first else (T, B, I)))}
    s = states(variant, rows, B, hidden=H, projected=layer.proj_size)
    return x | (s if given else {k: torch.zeros_like(v) for k, v in s.items()})


def assert_equals_the_pieces(variant, layer, ragged, on="reference"):
    lengths, resets = RAGGED[ragged]
    tensors = tensors_of(variant, layer, layer.batch_first)
    expected = run(layer, piecewise(lengths, resets), tensors)
    assert_same(run(layer, layer_call(lengths, resets, poison=True), tensors, on), expected)


@pytest.mark.parametrize("ragged", RAGGED)
@both_ways
@pytest.mark.parametrize(("depth", "first"), [(1, False), (2, True)], ids=["1x", "2x-first"])
@every_variant
def test_equals_the_pieces(variant, depth, first, both, ragged):
    layer = variant.layer(I, H, depth, batch_first=first, bidirectional=both)
    assert_equals_the_pieces(variant, layer, ragged)


@every_variant
def test_chosen_backend_equals_the_pieces(variant):
    layer = variant.layer(I, H, bidirectional=True)
    assert_equals_the_pieces(variant, layer, "lengths-resets", "default")


@pytest.mark.parametrize("ragged", RAGGED)
@both_ways
def test_projection_equals_the_pieces(both, ragged):
    (variant,) = [v for v in VARIANTS if v.cell == "lstm"]
    layer = variant.layer(I, H, 2, bidirectional=both, proj_size=2)
    assert_equals_the_pieces(variant, layer, ragged)


@pytest.mark.parametrize("ragged", RAGGED)
@every_variant
def test_no_state_is_a_zero_state(variant, ragged):
    layer = variant.layer(I, H, 2, bidirectional=True)
    call, tensors = layer_call(*RAGGED[ragged]), tensors_of(variant, layer, False, given=False)
    expected, expected_gradients = run(layer, call, tensors)
    found, gradients = run(layer, call, {"x": tensors["x"]})
    kept = {name: value for name, value in expected_gradients.items() if name in gradients}
    assert_same((found, gradients), (expected, kept), 0.0, 1e-14)


def torch_packed(lengths):
    def call(module, x, **given):
        packed = pack_padded_sequence(x, lengths, module.batch_first, enforce_sorted=False)
        output, state = module(packed, joined(given))
        return pad_packed_sequence(output, module.batch_first, total_length=T)[0], state

    return call


INTEGERS = [torch.int64, torch.int32, torch.int16, torch.uint8]


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: str(d).removeprefix("torch."))
@batch_first
@given_hx
@plain_variant
def test_lengths_equal_packing(variant, given, first, dtype):
    lengths = torch.tensor([4, 2, 6, 1])
    kwargs = {"num_layers": 2, "batch_first": first, "bidirectional": True}
    theirs, ours = variant.twin(I, H, **kwargs), variant.layer(I, H, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    tensors = tensors_of(variant, ours, first)
    tensors = tensors if given else {"x": tensors["x"]}
    expected = run(theirs, torch_packed(lengths), tensors)
    found = run(ours, layer_call(lengths.to(dtype), None, poison=True), tensors)
    assert_same(found, expected)
    padding = torch.arange(T)[:, None] >= lengths
    padding = padding.T if first else padding
    assert not found[0][0][padding].any() and not found[1]["x"][padding].any()


@both_ways
@every_variant
def test_unbatched(variant, both):
    """A row alone takes its length and its resets without a batch dimension."""
    layer = variant.layer(I, H, bidirectional=both)
    tensors = tensors_of(variant, layer, False)
    (output, *last), _ = run(layer, layer_call(LENGTHS, RESETS), tensors)
    for b in range(B):
        alone = {k: v[:, b] for k, v in tensors.items()}
        found, _ = run(layer, layer_call(LENGTHS[b], RESETS[:, b]), alone)
        expected = [v[:, b] for v in (output, *last)]
        assert_same((found, {}), (expected, {}))


@both_ways
@every_variant
def test_no_gradient_crosses_a_reset(variant, both):
    layer = variant.layer(I, H, 2, bidirectional=both)
    tensors = tensors_of(variant, layer, False)
    x = tensors["x"].requires_grad_()
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[3] = True
    with rnnkit.backend("reference"):
        output, _ = layer(x, joined(tensors), resets=resets)
        for inside, outside in ((slice(3, None), slice(3)), (slice(3), slice(3, None))):
            (dx,) = torch.autograd.grad(output[inside].sin().sum(), x, retain_graph=True)
            assert not dx[outside].any()
            assert dx[inside].any()


# Name: T, B, lengths.
EMPTY = {
    "no steps": (0, 2, None),
    "no rows": (3, 0, None),
    "neither": (0, 0, None),
    "rows of no length": (3, 2, torch.zeros(2, dtype=torch.long)),
    "no steps, lengths": (0, 2, torch.zeros(2, dtype=torch.long)),
    "no rows, lengths": (3, 0, torch.zeros(0, dtype=torch.long)),
}


def empty_cases():
    for variant in VARIANTS:
        for projected in (0, 2) if variant.cell == "lstm" else (0,):
            name = f"{variant.cell}-proj" if projected else variant.cell
            yield pytest.param(variant, projected, id=name)


@pytest.mark.parametrize("empty", EMPTY)
@batch_first
@both_ways
@given_hx
@pytest.mark.parametrize(("variant", "projected"), list(empty_cases()))
def test_empty(variant, projected, given, both, first, empty):
    """Empty or zero output, and the initial state, through which the gradient passes unchanged."""
    steps, rows, lengths = EMPTY[empty]
    layer = variant.layer(I, H, 2, batch_first=first, bidirectional=both, proj_size=projected)
    hx = states(variant, 2 * len(layer.reverse), rows, hidden=H, projected=projected)
    x = {"x": randn(*((rows, steps, I) if first else (steps, rows, I)))}
    call = layer_call(lengths, None)
    (output, *last), gradients = run(layer, call, x | (hx if given else {}))
    width = (projected or H) * len(layer.reverse)
    assert output.shape == ((rows, steps, width) if first else (steps, rows, width))
    assert not output.any()
    for k, (name, value) in enumerate(hx.items()):
        assert torch.equal(last[k], value if given else torch.zeros_like(value))
        if given:
            assert torch.equal(gradients[name], randn(*value.shape, seed=51 + k))
    assert not any(v.any() for name, v in gradients.items() if name not in hx)
