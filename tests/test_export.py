"""torch.export of whole layers: one program for every T and B, in inference and in training."""

import torch
from layer_variants import VARIANTS, assert_same, joined, main_variant, randn, run, states
from torch.export import Dim, export

B, I, H = 3, 2, 4  # noqa: E741


class Wrapped(torch.nn.Module):
    """A layer whose every argument is positional, as a program's inputs are."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, lengths, resets, *hx):
        state = hx if len(hx) > 1 else hx[0]
        return self.layer(x, state, lengths=lengths, resets=resets)


def arguments(variant, steps, rows):
    lengths = torch.arange(rows) % (steps + 1)
    hx = states(variant, 4, rows, hidden=H).values()
    return randn(steps, rows, I), lengths, randn(steps, rows, seed=7) > 1, *hx


def shapes(variant):
    T, N = Dim("T", min=2, max=512), Dim("B", min=2, max=512)
    states = tuple({1: N} for _ in variant.sizes(H))
    return ({0: T, 1: N}, {0: N}, {0: T, 1: N}, states)


@main_variant
def test_one_program_for_all_sizes(variant):
    """Each layer is one rnnkit::scan in it: no loop over time is unrolled."""
    module = Wrapped(variant.layer(I, H, 2, bidirectional=True, zoneout=0.2)).eval()
    exported = export(module, arguments(variant, 5, B), dynamic_shapes=shapes(variant))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert targets.count("rnnkit.scan.default") == 2
    for steps, rows in ((5, 3), (9, 2), (2, 6)):
        given = arguments(variant, steps, rows)
        assert_same((flat(exported.module()(*given)), {}), (flat(module(*given)), {}), 1e-12)


def test_gradients_of_a_program():
    """An exported program trains: its gradients are the module's."""
    variant = VARIANTS[1]
    module = variant.layer(I, H)
    dims = ({0: Dim("T", min=2, max=512), 1: Dim("B", min=2, max=512)},)
    exported = export(module, (randn(5, B, I),), dynamic_shapes=dims).module()

    def call(module, x, **given):
        return module(x, joined(given)) if given else module(x)

    tensors = {"x": randn(9, 2, I)}
    assert_same(run(exported, call, tensors), run(module, call, tensors))


def flat(results):
    output, state = results
    return [output, *(state if isinstance(state, tuple) else (state,))]


def test_saved_and_loaded(tmp_path):
    """A program goes through a file."""
    variant = VARIANTS[1]
    module = variant.layer(I, H)
    path = tmp_path / "layer.pt2"
    torch.export.save(export(module, (randn(5, B, I),)), path)
    loaded = torch.export.load(path).module()
    x = randn(5, B, I)
    assert_same((flat(loaded(x)), {}), (flat(module(x)), {}), 1e-12)
