"""save_memory changes what is kept for backward, and nothing else."""

import dataclasses

import pytest
import torch
from layer_loop import Draws, definition, layer_call, rates, recorded
from layer_variants import (
    PLAIN,
    VARIANTS,
    Variant,
    assert_same,
    close,
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
from torch.nn.utils.rnn import pack_padded_sequence

import rnnkit
from rnnkit.dispatch import recording

T, B, I, H = 5, 4, 3, 6  # noqa: E741
# With pieces of 2 steps: rows that end at a border, nowhere, inside and at the end.
LENGTHS = torch.tensor([2, 0, 3, 5])
# Resets at a border, where a row ends, inside, at the first and at the last step.
RESETS = torch.zeros(T, B, dtype=torch.bool)
RESETS[2, [0, 3]] = RESETS[1, 2] = RESETS[[0, 3, 4], 3] = RESETS[:, 1] = True
RAGGED = {
    "full": (None, None),
    "lengths": (LENGTHS, None),
    "resets": (None, RESETS),
    "both": (LENGTHS, RESETS),
}
every_ragged = pytest.mark.parametrize("ragged", RAGGED)


def pair(variant, steps=2, depth=2, **kwargs):
    """The layer with and without save_memory, of the same weights."""
    kwargs = {"bidirectional": True} | kwargs
    return [variant.layer(I, H, depth, save_memory=k, **kwargs) for k in (steps, 0)]


def tensors_of(variant, layer, steps=T):
    rows = layer.num_layers * len(layer.reverse)
    hx = states(variant, rows, B, hidden=H, projected=layer.proj_size)
    return {"x": randn(steps, B, I)} | hx


def assert_equal(variant, ragged="full", cells=False, length=T, on="reference", hx=True, **kwargs):
    saving, plain = pair(variant, **kwargs)
    tensors = tensors_of(variant, plain, length)
    tensors = tensors if hx else {"x": tensors["x"]}
    call = layer_call(*RAGGED[ragged], cells=cells)
    assert_same(run(saving, call, tensors, on), run(plain, call, tensors, on), 1e-13, 1e-11)


@every_ragged
@every_variant
def test_equals_the_whole(variant, ragged):
    assert_equal(variant, ragged, cells=variant.family == "LSTM")


@every_variant
def test_equals_the_whole_without_a_state(variant):
    assert_equal(variant, "both", hx=False)


@pytest.mark.parametrize("on", ["default", "reference"])
@plain_variant
def test_equals_the_whole_on_torch(variant, on):
    for both in (False, True):
        assert_equal(variant, on=on, bidirectional=both)


@every_ragged
@pytest.mark.parametrize("options", [{}, {"layer_norm": True, "peephole": True}], ids=str)
def test_equals_the_whole_with_projection(options, ragged):
    variant = Variant("lstm", "LSTM", options)
    assert_equal(variant, ragged, cells=True, proj_size=2)
    assert_equal(variant, ragged, cells=True, proj_size=2, hx=False)


# T, and the steps of a piece: one step each, a multiple, not one, all in one, none at all.
SIZES = [(5, 1), (6, 3), (5, 3), (5, 4), (5, 5), (3, 8), (1, 1), (0, 2)]


@pytest.mark.parametrize(("length", "steps"), SIZES)
@pytest.mark.parametrize("heads", [1, 3])
@plain_variant
def test_sizes_of_pieces(variant, heads, length, steps):
    assert_equal(variant, steps=steps, length=length, num_heads=heads)


@pytest.mark.parametrize("form", ["batch first", "unbatched", "packed"])
@plain_variant
def test_forms(variant, form):
    saving, plain = pair(variant, batch_first=form == "batch first")
    tensors = tensors_of(variant, plain)
    if form == "batch first":
        tensors["x"] = tensors["x"].transpose(0, 1)
    elif form == "unbatched":
        tensors = {k: v[:, 0] for k, v in tensors.items()}

    def call(module, x, **given):
        lengths = torch.tensor([2, 5, 3, 1])
        packed = form == "packed"
        x = pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x
        return module(x, joined(given))

    assert_same(run(saving, call, tensors), run(plain, call, tensors), 1e-13, 1e-11)


@pytest.mark.parametrize("ragged", ["full", "both"])
@every_variant
def test_double_backward(variant, ragged):
    found = []
    for module in pair(variant, depth=1):
        tensors = {k: v.requires_grad_() for k, v in tensors_of(variant, module).items()}
        sources = [*tensors.values(), *module.parameters()]
        with forced("reference"):
            results = leaves(layer_call(*RAGGED[ragged])(module, **tensors))
            loss = sum(v.sin().sum() for v in results)
            first = torch.autograd.grad(loss, sources, create_graph=True)
            loss = sum(v.sin().sum() for v in first)
            second = torch.autograd.grad(loss, sources, allow_unused=True, materialize_grads=True)
        found.append((first, second))
    for k, (ours, theirs) in enumerate(zip(*found, strict=True)):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            close(a, b, 1e-10, f"derivative {k + 1} of {i}")


# With draws


def draws_of(module, record, steps):
    """What each layer drew in one call, piece by piece; and every draw, made again in backward."""
    D, of_h = len(module.reverse), iter([v for v in record.dropout if v.dim() == 3])
    weight, found, used = iter([v for v in record.dropout if v.dim() == 2]), [], 0
    for _ in range(module.num_layers):
        keep = torch.zeros(len(rates(module)), T, B, D, H, dtype=torch.bool)
        for k, back in enumerate(module.reverse):
            starts = range(0, T, steps) if rates(module) else ()
            for start in reversed(starts) if back else starts:
                for state, rate in enumerate(rates(module)):
                    u = record.rand[used]
                    keep[state, start : start + steps, :, k] = (u < rate).flatten(2)
                    used += 1
        d = next(of_h).reshape(B, D, H) if module.recurrent_dropout else None
        masks = tuple(next(weight) for _ in range(D)) if module.weight_dropout else ()
        found.append(Draws(tuple(keep), d, masks))
    first, again = record.rand[:used], record.rand[used:]
    assert len(first) == len(again)
    assert all(any(torch.equal(a, b) for b in first) for a in again)
    return found


NOISES = {
    "zoneout": {"zoneout": 0.4},
    "recurrent_dropout": {"recurrent_dropout": 0.4},
    "weight_dropout": {"weight_dropout": 0.4},
    "all": {"zoneout": 0.4, "recurrent_dropout": 0.4, "weight_dropout": 0.4, "num_heads": 2},
    "c": {"zoneout": (0.2, 0.5)},
}


def noise_cases():
    """All at once with every variant; each alone where the cell is plain."""
    for variant in VARIANTS:
        for name in NOISES:
            if name == "all" or (variant in PLAIN and (name != "c" or variant.family == "LSTM")):
                yield pytest.param(variant, name, id=f"{variant.cell}-{name}")


every_noise = pytest.mark.parametrize(("variant", "noise"), list(noise_cases()))


@every_noise
def test_training_by_the_equations(variant, noise):
    """Every piece draws its own zoneout masks, and the same again in backward."""
    module, _ = pair(variant, **NOISES[noise])
    tensors, cells = tensors_of(variant, module), variant.family == "LSTM"
    with recorded() as record:
        found = run(module, layer_call(LENGTHS, RESETS, cells), tensors)
    draws = draws_of(module, record, 2)
    expected = run(module, definition(LENGTHS, RESETS, draws, cells), tensors)
    assert_same(found, expected)
    if "zoneout" in NOISES[noise]:
        once = [
            dataclasses.replace(d, keep=tuple(v[torch.arange(T) % 2] for v in d.keep))
            for d in draws
        ]
        wrong = run(module, definition(LENGTHS, RESETS, once, cells), tensors)
        assert (wrong[0][0] - found[0][0]).abs().max() > 1e-3


@every_run
def test_dropout_as_the_whole(variant, on):
    """With the same seed; there is nothing to draw again."""
    noise = {"weight_dropout": 0.4} | ({"recurrent_dropout": 0.4} if on == "reference" else {})
    asked = RAGGED["both" if on == "reference" else "full"]

    def call(module, **given):
        torch.manual_seed(3)
        return layer_call(*asked)(module, **given)

    saving, plain = pair(variant, **noise)
    tensors = tensors_of(variant, plain)
    assert_same(run(saving, call, tensors, on), run(plain, call, tensors, on), 1e-13, 1e-11)


@every_variant
def test_eval_as_the_whole(variant):
    saving, plain = pair(variant, **NOISES["all"])
    tensors, call = tensors_of(variant, plain), layer_call(LENGTHS, RESETS)
    found, expected = (run(module.eval(), call, tensors) for module in (saving, plain))
    assert_same(found, expected, 1e-13, 1e-11)


@every_variant
def test_without_gradients_and_under_func(variant):
    """There is nothing to save; and torch.func, which refuses checkpoints, is served without."""
    saving, plain = pair(variant)
    x, parameters = randn(T, B, I), dict(plain.named_parameters())

    def loss(module):
        def of(parameters, x):
            return torch.func.functional_call(module, parameters, (x,))[0].sin().sum()

        return of

    with forced("reference"):
        with torch.no_grad():
            assert torch.equal(saving(x)[0], plain(x)[0])
        found, expected = (torch.func.grad(loss(m))(parameters, x) for m in (saving, plain))
    for name, value in expected.items():
        close(found[name], value, 1e-13, name)


# Memory


def saved_bytes(module, x, call):
    """Bytes kept for backward, beside the parameters and the input."""
    kept, storages = {v.untyped_storage().data_ptr() for v in (x, *module.parameters())}, {}

    def pack(v):
        storage = v.untyped_storage()
        if storage.data_ptr() not in kept:
            storages[storage.data_ptr()] = storage  # held, so that no other gets its address
        return v

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        results = leaves(call(module, x))
    assert results[0].requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def assert_saves(variant, least, on="reference", call=None, **kwargs):
    x = randn(512, B, I).requires_grad_()
    with forced(on):
        saving, plain = (
            saved_bytes(variant.layer(I, H, save_memory=k, **kwargs), x, call or layer_call())
            for k in (32, 0)
        )
    assert saving > 0
    assert plain >= least * saving, f"{plain} bytes without, {saving} with save_memory=32"


@every_variant
def test_memory(variant):
    """Of T = 512 in pieces of 32 a sixteenth of the states remains, and nothing else."""
    assert_saves(variant, 8)


@pytest.mark.parametrize("variant", PLAIN, ids=lambda v: v.cell)
def test_memory_on_the_chosen_backend(variant):
    assert_saves(variant, 4, "default")


@pytest.mark.parametrize("variant", PLAIN, ids=lambda v: v.cell)
def test_memory_in_training(variant):
    """No mask is kept either; of zoneout every piece keeps the generator's state."""
    assert_saves(variant, 4, **NOISES["all"])


@pytest.mark.parametrize("variant", [v for v in PLAIN if v.family != "RNN"], ids=lambda v: v.cell)
def test_memory_of_more(variant):
    """Two layers keep what is between them, whole."""
    assert_saves(variant, 4, num_layers=2)
    assert_saves(variant, 8, bidirectional=True)


@pytest.mark.parametrize("variant", PLAIN, ids=lambda v: v.cell)
def test_memory_of_ragged_batches(variant):
    """With lengths the input is kept with zeros in its padding."""
    lengths = torch.tensor([512, 100, 64, 1])

    def ragged(module, x):
        return module(x, lengths=lengths)

    assert_saves(variant, 2, call=ragged)


@pytest.mark.parametrize("variant", PLAIN, ids=lambda v: v.cell)
def test_packed_batches_run_in_pieces(variant):
    """Also where a backend would take the batch as it is."""
    batch = pack_padded_sequence(randn(T, 2, I), torch.tensor([5, 3]))
    with recording() as decisions:
        variant.layer(I, H, save_memory=2)(batch)
    assert {decision.problem.T for decision in decisions} == {1, 2}


@pytest.mark.parametrize("variant", [v for v in PLAIN if v.family == "LSTM"], ids=lambda v: v.cell)
def test_memory_is_less_in_smaller_pieces(variant):
    """A layer's own need is least near sqrt(T) steps; here only what is kept is counted."""
    x = randn(256, B, I)
    kept = [saved_bytes(variant.layer(I, H, save_memory=k), x, layer_call()) for k in (128, 64, 32)]
    assert kept == sorted(kept)


def test_a_backend_forced_in_forward_only():
    """Backward computes the pieces again where they ran, not where it runs itself."""
    layer, x = rnnkit.LSTM(I, H, save_memory=2, dtype=torch.double), randn(5, 2, I)
    with rnnkit.backend("reference"):
        output = layer(x)[0]
    output.sum().backward()
    found = layer.weight_hh_l0.grad.clone()
    layer.zero_grad()
    layer(x)[0].sum().backward()
    close(found, layer.weight_hh_l0.grad, 1e-12, "weight_hh")
