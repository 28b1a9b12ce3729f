"""torch.onnx.export of every layer, judged by onnxruntime: one model for every T and B.

To export takes seconds, so many layers go into one model; `make test-all` exports the others.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from layer_variants import VARIANTS, every_variant, leaves, randn
from torch import nn

import rnnkit
from rnnkit import NormOptions
from rnnkit.onnx import OPERATORS

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

B, I, H = 3, 2, 4  # noqa: E741
SIZES = ((5, 3), (9, 2), (1, 1))  # T and B; the first is exported
BY_CELL = {variant.cell: variant for variant in VARIANTS}
RECURRENT = ("LSTM", "GRU", "RNN", "Scan", "Loop")


def export(module, args, dynamic_shapes=None):
    return torch.onnx.export(module, args, dynamic_shapes=dynamic_shapes, verbose=False).model_proto


def run(model, args, times=1):
    """What onnxruntime gives; of several runs, in one list."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [given.name for given in session.get_inputs()]
    given = {name: v.numpy() for name, v in zip(names, args, strict=True)}
    return [torch.from_numpy(v) for _ in range(times) for v in session.run(None, given)]


def named(model, *names):
    """The model's nodes of these operators."""
    return [node for node in model.graph.node if node.op_type in names]


def close(ours, theirs, tolerance, name):
    torch.testing.assert_close(
        ours, theirs, rtol=0, atol=tolerance, msg=lambda text: f"{name}: {text}"
    )


def layer(cell, *args, **kwargs):
    """A layer of random weights that gives that cell."""
    return BY_CELL[cell].layer(I, H, *args, **{"dtype": torch.float32} | kwargs)


@dataclass(frozen=True)
class Case:
    """A layer, and what its call is given beside the input."""

    name: str
    layer: Any
    given: tuple[str, ...] = ()

    def __call__(self, x, lengths, resets, *states):
        layer, rows = self.layer, self.layer.num_layers * len(self.layer.reverse)
        sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size]
        hx = tuple(v[:rows, :, :size] for v, size in zip(states, sizes, strict=True))
        hx = hx if layer.equations.states == 2 else hx[0]
        x = x.transpose(0, 1) if layer.batch_first else x
        resets = resets.T if layer.batch_first else resets
        more = {"lengths": lengths, "resets": resets, "return_cell_states": True, "hx": hx}
        return leaves(layer(x, **{name: more[name] for name in self.given}))


class Gallery(nn.Module):
    """Many layers on one input."""

    def __init__(self, cases):
        super().__init__()
        self.cases = cases
        self.layers = nn.ModuleList(case.layer for case in cases)

    def forward(self, *args):
        return tuple(v for case in self.cases for v in case(*args))


def arguments(steps, rows, dtype):
    lengths = (torch.arange(rows) * 2) % (steps + 1)
    states = [randn(4, rows, H, seed=k, dtype=dtype) for k in (20, 21)]
    return randn(steps, rows, I, dtype=dtype), lengths, randn(steps, rows, seed=7) > 1, *states


def check(cases, tolerance=1e-5, dtype=torch.float32):
    """Exports the layers in one model, which is the layers at every size; returns it."""
    module, time, batch = Gallery(cases).eval(), {0: "T", 1: "B"}, {1: "B"}
    shapes = ((time, {0: "B"}, time, batch, batch),)
    model = export(module, arguments(*SIZES[0], dtype), shapes)
    for size in SIZES:
        args = arguments(*size, dtype)
        found = iter(run(model, args))
        for case in cases:
            with torch.no_grad():
                for k, expected in enumerate(case(*args)):
                    close(next(found), expected, tolerance, f"{case.name}, result {k} at {size}")
        assert not [*found]
    return model


def plain(cell, **options):
    """A call that one operator of ONNX's serves."""
    both = {"bidirectional": True, "batch_first": True}
    return Case(f"{cell} {options}", layer(cell, **both, **options), ("hx", "lengths"))


def test_plain_layers():
    """Every cell that ONNX has is its operator, one for each layer; W, R and B are constants."""
    wide = Case("wide", rnnkit.LSTM(I, 50))  # more weights than torch's exporter computes with
    stacked = Case("stacked", layer("lstm", 2, bias=False))
    model = check([wide, stacked, *(plain(cell) for cell in OPERATORS)])
    nodes = named(model, *RECURRENT)
    names = [operator.name for operator in OPERATORS.values()]
    assert [node.op_type for node in nodes] == ["LSTM"] * 3 + names
    constants = {v.name for v in model.graph.initializer} | {""}
    assert all(constants.issuperset(node.input[1:4]) for node in nodes[1:])


def all_options():
    options = {"peephole": True, "zoneout": (0.2, 0.1), "num_heads": 2, "bidirectional": True}
    norm = NormOptions(per_gate=True, carry=True, eps=1e-3)
    return rnnkit.LSTM(I, H, layer_norm=norm, **options)


def test_looped_layers():
    """A layer for which there is no operator is one Scan."""
    cases = [
        Case("all options", all_options(), ("hx", "lengths", "resets", "return_cell_states")),
        Case("projection", layer("lstm", proj_size=3), ("hx", "lengths")),
    ]
    assert [node.op_type for node in named(check(cases), *RECURRENT)] == ["Scan"] * 2


class Others(nn.Module):
    """What is not a recurrent layer over a sequence."""

    def __init__(self):
        super().__init__()
        self.lstm_cell, self.gru_cell = rnnkit.LSTMCell(I, H), rnnkit.GRUCell(I, H, num_heads=2)
        self.streamed = rnnkit.RNN(I, H)
        self.norm = rnnkit.LayerNorm(I, activation="silu")
        self.conv = rnnkit.CausalConv1d(I, 4, 3, dilation=2, activation="gated", channels_last=True)
        self.strided = rnnkit.CausalConv1d(I, 4, 2, 2, groups=2)
        self.wavenet = rnnkit.WaveNet(I, 3, 4, layers=2, blocks=1, global_channels=I)

    def forward(self, x):
        """x: (N, L, I)."""
        once, last = x.mT, x[:, -1]
        y, total = self.norm(x, x * 2, return_sum=True)
        return (
            *leaves(self.lstm_cell(last)),
            self.gru_cell(last),
            *leaves(self.streamed.step(last)),
            *(y, total),
            *self.conv(x, state=once.new_ones(x.shape[0], I, 4), return_state=True),
            self.strided(once),
            self.wavenet(once, global_condition=last),
        )


def test_other_modules():
    """Cells, steps, norms and convolutions, which are ONNX's own operators."""
    module = Others().eval()
    model = export(module, (randn(3, 7, I, dtype=torch.float32),), ({0: "N", 1: "L"},))
    for rows, steps in ((3, 7), (2, 9)):
        x = randn(rows, steps, I, dtype=torch.float32)
        with torch.no_grad():
            for k, pair in enumerate(zip(run(model, [x]), module(x), strict=True)):
                close(*pair, 1e-5, f"result {k}")
    assert len(named(model, "LayerNormalization")) == 1
    assert len(named(model, "Conv")) == 2 + 1 + 2 + 1 + 2 + 1  # WaveNet: in, blocks, skips, head


LOOPS = {
    "heads": ({"num_heads": 2}, ()),
    "zoneout": ({"zoneout": 0.2}, ("lengths",)),
    "resets": ({"batch_first": True}, ("lengths", "resets", "hx")),
}


@pytest.mark.slow
@every_variant
def test_every_cell(variant):
    cell = variant.cell
    if cell in OPERATORS:
        check([plain(cell, bias=False), plain(cell, num_layers=2)])
    # ONNX has eps in float32, and a norm of two units enlarges any rounding.
    more = {"bidirectional": True, "dtype": torch.double}
    loops = [
        Case(f"{cell} with {name}", layer(cell, **more, **options), given)
        for name, (options, given) in LOOPS.items()
    ]
    check(loops, 1e-6, torch.double)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "gru_norm"])
def test_half(name):
    check([Case(name, layer(name, dtype=torch.half), ("hx", "lengths"))], 2e-3, torch.half)


@pytest.mark.slow
def test_program():
    """A program of torch.export, when rnnkit's operators are out of it."""
    module = layer("gru_norm").eval()
    x = randn(5, B, I, dtype=torch.float32)
    shapes = ({0: torch.export.Dim("T", max=99), 1: torch.export.Dim("B", max=99)},)
    program = torch.export.export(module, (x,), dynamic_shapes=shapes)
    with pytest.raises(torch.onnx.OnnxExporterError, match="rnnkit"):
        export(program, ())
    model = export(program.run_decompositions(rnnkit.export.decompositions()), ())
    x = randn(9, 2, I, dtype=torch.float32)
    with torch.no_grad():
        for ours, theirs in zip(run(model, [x]), module(x), strict=True):
            close(ours, theirs, 1e-5, "result")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zoneout", "recurrent_dropout", "weight_dropout", "dropout"])
def test_training(name):
    """In training mode what is random in the layer is drawn anew by every run."""
    module = rnnkit.GRU(I, 64, 2, **{name: 0.25})
    x = randn(3, 64, I, dtype=torch.float32)
    model = export(module, (x,))
    one, _, two, _ = run(model, [x], times=2)
    assert (one - two).abs().mean() > 1e-3
    close(one.mean(), module(x)[0].mean(), 0.1, "mean")
    if name == "zoneout":
        first = rnnkit.GRU(I, 64, zoneout=0.25)
        kept = run(export(first, (x,)), [x])[0][0] == 0  # the first step's old value is zero
        assert abs(kept.float().mean() - 0.25) < 0.04  # six standard deviations
