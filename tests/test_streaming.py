"""Cell states of every step, and sequences that come step by step."""

import pytest
import torch
from layer_loop import definition, layer_call
from layer_variants import (
    VARIANTS,
    Variant,
    assert_same,
    close,
    every_variant,
    forced,
    joined,
    leaves,
    randn,
    run,
    states,
)
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnnkit
from rnnkit import NormOptions

T, B, I, H = 6, 3, 3, 6  # noqa: E741
LENGTHS = torch.tensor([4, 0, 6])
RESETS = torch.zeros(T, B, dtype=torch.bool)
RESETS[[0, 2], 0] = RESETS[:, 1] = RESETS[[2, 3, 4], 2] = True
RAGGED = {"full": (None, None), "both": (LENGTHS, RESETS)}
every_ragged = pytest.mark.parametrize("ragged", RAGGED)
LSTMS = [v for v in VARIANTS if v.family == "LSTM"]
every_lstm = pytest.mark.parametrize("variant", LSTMS, ids=lambda v: v.cell)
LSTM = Variant("lstm", "LSTM", {})
# Name: what an LSTM has beside its variant.
MORE = {
    "plain": {},
    "2x-bi": {"num_layers": 2, "bidirectional": True},
    "heads": {"num_heads": 3, "bidirectional": True},
}


def tensors_of(variant, layer):
    rows = layer.num_layers * len(layer.reverse)
    hx = states(variant, rows, B, hidden=H, projected=layer.proj_size)
    return {"x": randn(T, B, I)} | hx


# Cell states


@every_ragged
@pytest.mark.parametrize("more", MORE)
@every_lstm
def test_cell_states(variant, more, ragged):
    """c of every step by the equations; its gradient too."""
    layer, asked = variant.layer(I, H, **MORE[more]), RAGGED[ragged]
    tensors = tensors_of(variant, layer)
    expected = run(layer, definition(*asked, cells=True), tensors)
    assert_same(run(layer, layer_call(*asked, cells=True), tensors), expected)


@pytest.mark.parametrize("on", ["default", "reference"])
@every_ragged
def test_cell_states_with_projection(ragged, on):
    layer, asked = LSTM.layer(I, H, 2, proj_size=2, bidirectional=True), RAGGED[ragged]
    tensors = tensors_of(LSTM, layer)
    expected = run(layer, definition(*asked, cells=True), tensors)
    assert expected[0][-1].shape == (T, B, 2 * H)
    assert_same(run(layer, layer_call(*asked, cells=True), tensors, on), expected)


@every_lstm
def test_last_cell_state(variant):
    """c of the last step is c_n; backward in time, that is the first one."""
    layer = variant.layer(I, H, 2, bidirectional=True)
    with forced("reference"):
        _, (_, c_n), cells = layer(randn(T, B, I), lengths=LENGTHS, return_cell_states=True)
    for b, length in enumerate(LENGTHS.tolist()):
        if length:
            assert torch.equal(cells[length - 1, b, :H], c_n[2, b])
            assert torch.equal(cells[0, b, H:], c_n[3, b])
        assert not cells[length:, b].any()


@every_lstm
def test_forms_of_cell_states(variant):
    """Batch first, unbatched and packed: c comes as the output does."""
    layer, first = (
        variant.layer(I, H, 2, bidirectional=True, batch_first=v) for v in (False, True)
    )
    tensors, lengths = tensors_of(variant, layer), torch.tensor([4, 1, 6])
    x, hx = tensors["x"], joined({k: v for k, v in tensors.items() if k != "x"})
    with forced("reference"):
        output, state, cells = layer(x, hx, lengths=lengths, return_cell_states=True)
        turned = first(x.transpose(0, 1), hx, lengths=lengths, return_cell_states=True)
        batch = pack_padded_sequence(x, lengths, enforce_sorted=False)
        packed = layer(batch, hx, return_cell_states=True)
        row = layer(
            x[:, 0], tuple(v[:, 0] for v in hx), lengths=lengths[0], return_cell_states=True
        )
    assert torch.equal(turned[0].transpose(0, 1), output)
    assert torch.equal(turned[2].transpose(0, 1), cells)
    assert all(torch.equal(a, b) for a, b in zip(turned[1], state, strict=True))
    assert isinstance(packed[2], PackedSequence)
    assert torch.equal(packed[2].sorted_indices, batch.sorted_indices)
    close(pad_packed_sequence(packed[0], total_length=T)[0], output, 1e-13, "packed output")
    close(pad_packed_sequence(packed[2], total_length=T)[0], cells, 1e-13, "packed c")
    for a, b in zip(packed[1], state, strict=True):
        close(a, b, 1e-13, "packed state")
    assert row[2].shape == (T, 2 * H)
    close(row[2], cells[:, 0], 1e-13, "unbatched c")


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v.family != "LSTM"], ids=lambda v: v.cell
)
def test_no_cell_states(variant):
    with pytest.raises(ValueError, match=f"return_cell_states: {variant.family} has no cell state"):
        variant.layer(I, H)(randn(T, B, I), return_cell_states=True)


# Steps


def whole(module, x, **given):
    return module(x, joined(given))


def stepwise(prefill):
    """A call that runs `prefill` steps as a sequence and every other alone."""

    def call(module, x, **given):
        time = 1 if module.batch_first and x.dim() == 3 else 0
        state, outputs = joined(given), []
        if prefill:
            output, state = module(x.narrow(time, 0, prefill), state)
            outputs = [*output.unbind(time)]
        for row in x.unbind(time)[prefill:]:
            output, state = module.step(row, state)
            outputs.append(output)
        return torch.stack(outputs, time), state

    return call


def step_cases():
    """Every variant as it is and with everything else that it can have; and projections."""
    more = {"num_layers": 2, "num_heads": 2, "zoneout": 0.3}
    dropped = {"recurrent_dropout": 0.4, "weight_dropout": 0.3, "dropout": 0.5, "save_memory": 2}
    for variant in VARIANTS:
        yield pytest.param(variant, {}, id=variant.cell)
        yield pytest.param(variant, more | dropped, id=f"{variant.cell}-more")
    norm = NormOptions(carry=True, bias=False, eps=0.1)
    for name, options in {"": {}, "-norm": {"layer_norm": norm}, "-ph": {"peephole": True}}.items():
        kwargs = {"num_layers": 2, "proj_size": 2, "zoneout": (0, 0.3)}
        yield pytest.param(Variant("lstm", "LSTM", options), kwargs, id=f"lstm-proj{name}")


FORMS = [("time first", 0), ("time first", 3), ("batch first", 3), ("unbatched", 3)]


@pytest.mark.parametrize(("form", "prefill"), FORMS)
@pytest.mark.parametrize(("variant", "kwargs"), list(step_cases()))
def test_steps_equal_the_sequence(variant, kwargs, form, prefill):
    """In eval; values and gradients."""
    layer = variant.layer(I, H, batch_first=form == "batch first", **kwargs).eval()
    tensors = tensors_of(variant, layer)
    if form == "batch first":
        tensors["x"] = tensors["x"].transpose(0, 1)
    elif form == "unbatched":
        tensors = {k: v[:, 0] for k, v in tensors.items()}
    assert_same(run(layer, stepwise(prefill), tensors), run(layer, whole, tensors))


@every_variant
def test_first_step_needs_no_state(variant):
    layer, x = variant.layer(I, H, 2), randn(T, B, I)
    assert_same(run(layer, stepwise(0), {"x": x}), run(layer, whole, {"x": x}))


@every_variant
def test_steps_from_the_layers_choice(variant):
    """On the backend that dispatch chooses for a single step, without gradients."""
    layer, tensors = variant.layer(I, H).eval(), tensors_of(variant, variant.layer(I, H))
    with torch.no_grad():
        found = leaves(stepwise(0)(layer, **tensors))
        with forced("reference"):
            expected = leaves(whole(layer, **tensors))
    assert_same((found, {}), (expected, {}))


def test_zoneout_in_training_draws_at_every_step():
    """A stream in training meets the same equations: elements keep their value or do not."""
    layer = rnnkit.GRU(I, 64, zoneout=0.5, dtype=torch.double)
    state, kept = randn(1, B, 64), []
    for x in randn(2, B, I):
        _, new = layer.step(x, state)
        kept.append(new == state)
        state = new
    assert all(0.3 < k.double().mean() < 0.7 for k in kept)
    assert not torch.equal(*kept)


# Name: the layer's arguments, the call, the error and its message.
REFUSED = {
    "bidirectional": ({"bidirectional": True}, (B, I), ValueError, "step: a bidirectional layer"),
    "recurrent_dropout": (
        {"recurrent_dropout": 0.5},
        (B, I),
        RuntimeError,
        r"step: recurrent_dropout=0.5 has one mask.*call eval\(\)",
    ),
    "weight_dropout": (
        {"weight_dropout": 0.5},
        (B, I),
        RuntimeError,
        r"step: weight_dropout=0.5 has one mask.*call eval\(\)",
    ),
    "3-D": ({}, (T, B, I), ValueError, r"step: expected input \(B, I\) or \(I\), got 3-D"),
    "0-D": ({}, (), ValueError, r"step: expected input .*, got 0-D"),
    "wide": ({}, (B, I + 1), RuntimeError, "Expected 3, got 4"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("family", ["RNN", "LSTM", "GRU"])
def test_step_refuses(family, case):
    kwargs, shape, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        getattr(rnnkit, family)(I, H, **kwargs).step(torch.zeros(shape))


@pytest.mark.parametrize("family", ["RNN", "LSTM", "GRU"])
def test_step_refuses_other_types_and_states(family):
    layer, x = getattr(rnnkit, family)(I, H), torch.zeros(B, I)
    packed = pack_padded_sequence(torch.zeros(T, B, I), torch.tensor([3, 2, 1]))
    for given, name in (([0.0], "list"), (None, "NoneType"), (packed, "PackedSequence")):
        with pytest.raises(ValueError, match=rf"step: expected input .*, got {name}"):
            layer.step(given)
    s = torch.zeros(1, B + 1, H)
    with pytest.raises(RuntimeError, match=r"Expected hidden.* \(1, 3, 6\), got \[1, 4, 6\]"):
        layer.step(x, (s, s) if family == "LSTM" else s)
    with pytest.raises(RuntimeError, match="should also be 3-D but got"):
        layer.step(x, (s[0], s[0]) if family == "LSTM" else s[0])


@pytest.mark.parametrize("name", ["recurrent_dropout", "weight_dropout"])
def test_step_in_eval_with_dropout(name):
    layer = rnnkit.LSTM(I, H, **{name: 0.5}).eval()
    assert layer.step(torch.zeros(B, I))[0].shape == (B, H)
