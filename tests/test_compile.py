"""torch.compile of whole layers: one graph for every size, in training."""

import pytest
import torch
from layer_variants import (
    assert_same,
    close,
    forced,
    joined,
    main_variant,
    plain_variant,
    randn,
    run,
    states,
)
from torch._dynamo.testing import CompileCounterWithBackend

B, I, H = 3, 2, 4  # noqa: E741


@pytest.fixture
def counter():
    """A backend that counts its graphs. The first shape may take two: torch.compile starts anew
    where it finds that the layer's float attributes need not be dynamic."""
    torch._dynamo.reset()
    with forced("reference"):
        yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


def compiled(module, counter):
    return torch.compile(module, fullgraph=True, backend=counter, dynamic=True)


def ragged_call(function, **ragged):
    return lambda module, x, **given: function(x, joined(given), **ragged)


@main_variant
def test_one_graph_for_all_sizes(variant, counter):
    """Results and gradients for every T and B, with lengths, resets and a state.

    The first call has sizes met nowhere else: equal ones would be taken for the same.
    """
    module = variant.layer(I, H, bidirectional=True, batch_first=True)
    function, counts = compiled(module, counter), []
    for steps, lengths in ((7, [4, 0, 2]), (6, [1, 6, 5, 2, 3]), (9, [9, 9, 8])):
        rows = len(lengths)
        ragged = {"lengths": torch.tensor(lengths), "resets": randn(rows, steps, seed=7) > 1}
        tensors = {"x": randn(rows, steps, I)} | states(variant, 2, rows, hidden=H)
        found = run(module, ragged_call(function, **ragged), tensors)
        assert_same(found, run(module, ragged_call(module, **ragged), tensors))
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1, counts


@plain_variant
def test_training(variant, counter):
    """Parameters move between the calls of one graph, as they do without it."""
    module, twin = variant.layer(I, H, 2), variant.layer(I, H, 2)
    function, counts = compiled(module, counter), []
    for call, layer in ((function, module), (twin, twin)):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for steps in (6, 5, 9):
            optimizer.zero_grad()
            call(randn(steps, B, I))[0].square().sum().backward()
            optimizer.step()
            counts.append(counter.frame_count)
    assert len(set(counts)) == 1, counts
    for name, value in twin.named_parameters():
        close(dict(module.named_parameters())[name], value, 1e-10, name)


@plain_variant
def test_cell(variant, counter):
    module = variant.one(I, H)
    function = compiled(module, counter)
    tensors = {"x": randn(B, I)} | states(variant, B, hidden=H)
    expected = run(module, ragged_call(module), tensors)
    assert_same(run(module, ragged_call(function), tensors), expected)


OPTIONS = {"zoneout": 0.2, "recurrent_dropout": 0.3, "weight_dropout": 0.2, "num_heads": 2}


@pytest.mark.parametrize("save_memory", [pytest.param(0, marks=pytest.mark.slow), 3])
@main_variant
def test_regularisers(variant, save_memory, counter):
    """With every option in training, one graph gives what the layer gives with the same seed.

    There save_memory has no effect: the graph of a loop over pieces would be one for every T.
    """
    twin = variant.layer(I, H, 2, bidirectional=True, **OPTIONS)
    module = variant.layer(I, H, 2, bidirectional=True, save_memory=save_memory, **OPTIONS)
    ragged = {"lengths": torch.tensor([4, 0, 5]), "resets": randn(5, 3, seed=7) > 1}
    tensors = {"x": randn(5, 3, I)} | states(variant, 4, 3, hidden=H)

    def seeded(function):
        def call(module, x, **given):
            torch.manual_seed(5)
            return function(x, joined(given), **ragged)

        return call

    expected = run(twin, seeded(twin), tensors)
    assert_same(run(module, seeded(compiled(module, counter)), tensors), expected)
