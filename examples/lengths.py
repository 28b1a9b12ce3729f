"""Rows of their own length in one batch, by `lengths`, without sorting or packing.

    python examples/lengths.py --figure build/lengths.png

The padding may hold anything, NaN too: it is never read. This prints that the outcome is that of
torch.nn on a packed sequence, and trains classifiers with lengths and without.
"""

import argparse
import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkit

# Whether a classifier is told the lengths: label and color.
HOWS = {
    True: ("lengths given", "#1b7a3d"),
    False: ("padding read as data", "#a01c1c"),
}
QUARTERS = 4
AHEAD = 2
BINS = 4
TOLERANCE = 1e-12  # of float64, for sums of some hundred terms of size one


class Task(NamedTuple):
    """The classification: in which quarter of its cycle is a noisy sine, AHEAD steps past its end?

    The steps of a row are as many as its length, at random between a quarter of `steps` and all.
    """

    steps: int = 48
    rows: int = 64
    hidden: int = 32
    updates: int = 200
    seeds: int = 3
    tested: int = 1000
    # How much longer than in training a test batch is, for the same rows.
    longer: tuple[int, ...] = (1, 2, 3, 4)


class Batch(NamedTuple):
    """Rows (T, B, 1), their lengths and classes (B,)."""

    x: Tensor
    lengths: Tensor
    classes: Tensor


def is_padding(steps: int, lengths: Tensor) -> Tensor:
    """(T, B): where a step is past its row's end."""
    return torch.arange(steps)[:, None] >= lengths


def make_batch(task: Task, rows: int, generator: torch.Generator, padding: float) -> Batch:
    """Rows at random, with their own lengths, frequencies and phases."""
    lengths = torch.randint(task.steps // 4, task.steps + 1, (rows,), generator=generator)
    frequency = 0.05 + 0.10 * torch.rand(rows, generator=generator)
    phase = torch.rand(rows, generator=generator)
    cycles = frequency * torch.arange(task.steps)[:, None] + phase
    noise = torch.randn(task.steps, rows, generator=generator)
    x = torch.sin(2 * math.pi * cycles) + 0.05 * noise
    x = x.masked_fill(is_padding(task.steps, lengths), padding)
    asked = frequency * (lengths - 1 + AHEAD) + phase
    return Batch(x[..., None], lengths, (asked % 1 * QUARTERS).long())


def differences(kind: str, steps: int, rows: int) -> dict[str, float]:
    """Two bidirectional layers beside torch.nn's on a packed sequence, in float64.

    Returns the largest differences of outputs, final states, and gradients of input and weights.
    Our padding is NaN, forward and backward.
    """
    inputs, hidden = 5, 16
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    theirs = getattr(nn, kind)(inputs, hidden, **options)
    ours = getattr(rnnkit, kind)(inputs, hidden, **options)
    ours.load_state_dict(theirs.state_dict())
    lengths = torch.randint(steps // 4, steps + 1, (rows,))
    lengths[0] = steps
    padding = is_padding(steps, lengths)[..., None]
    x = torch.randn(steps, rows, inputs, dtype=torch.float64)

    a = x.clone().requires_grad_()
    packed, final = theirs(pack_padded_sequence(a, lengths, enforce_sorted=False))
    output, _ = pad_packed_sequence(packed)
    expected = outcome(output, final, [a, *theirs.parameters()])

    b = x.masked_fill(padding, torch.nan).requires_grad_()
    output, final = ours(b, lengths=lengths)
    found = outcome(output, final, [b, *ours.parameters()])
    return {
        name: largest([a - b for a, b in zip(found[name], group, strict=True)])
        for name, group in expected.items()
    }


def largest(tensors: list[Tensor]) -> float:
    """The largest absolute value of all elements; NaN if there is one."""
    return float(torch.stack([v.abs().max() for v in tensors]).max())


def outcome(
    output: Tensor, final: Tensor | tuple[Tensor, ...], leaves: list[Tensor]
) -> dict[str, list[Tensor]]:
    """Outputs, final states, and the gradients of a function of both."""
    states = [final] if isinstance(final, Tensor) else [*final]
    # Of every element some other function, so that no error cancels another.
    loss = output.sin().square().sum() + sum(v.cos().sum() for v in states)
    gradients = torch.autograd.grad(loss, leaves)
    groups = {"output": [output], "final state": states, "gradients": [*gradients]}
    return {name: [v.detach() for v in group] for name, group in groups.items()}


class Classifier(nn.Module):
    """A bidirectional layer-norm GRU, and a linear readout of the final state of each direction."""

    def __init__(self, task: Task, uses_lengths: bool) -> None:
        super().__init__()
        self.uses_lengths = uses_lengths
        self.gru = rnnkit.GRU(1, task.hidden, bidirectional=True, layer_norm=True)
        self.readout = nn.Linear(2 * task.hidden, QUARTERS)

    @property
    def padding(self) -> float:
        """What may stand past a row's end: anything, with lengths."""
        return torch.nan if self.uses_lengths else 0.0

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B, QUARTERS)."""
        _, h = self.gru(x, lengths=lengths if self.uses_lengths else None)
        return self.readout(torch.cat([*h], -1))


class Trained(NamedTuple):
    """A model and its accuracy on new rows for each padded length: of all, and by bin of length."""

    model: Classifier
    accuracy: list[float]
    by_length: list[list[float]]


def train(task: Task, uses_lengths: bool, seed: int) -> Trained:
    """Adam on new rows at every update, then the test."""
    torch.manual_seed(seed)
    model = Classifier(task, uses_lengths)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(task.updates):
        x, lengths, classes = make_batch(task, task.rows, generator, model.padding)
        scores = model(x, lengths)
        optimizer.zero_grad()
        F.cross_entropy(scores, classes).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return Trained(model, *evaluate(task, model, 1000 + seed))


@torch.no_grad()
def evaluate(task: Task, model: Classifier, seed: int) -> tuple[list[float], list[list[float]]]:
    """Accuracy on the same new rows, in batches that are padded further and further."""
    generator = torch.Generator().manual_seed(seed)
    x, lengths, classes = make_batch(task, task.tested, generator, model.padding)
    edges = bin_edges(task)
    accuracy, by_length = [], []
    for longer in task.longer:
        more = longer * task.steps - task.steps
        padded = F.pad(x, (0, 0, 0, 0, 0, more), value=model.padding)
        right = (model(padded, lengths).argmax(-1) == classes).float()
        bins = torch.bucketize(lengths, torch.tensor(edges[1:-1]), right=True)
        accuracy.append(float(right.mean()))
        by_length.append([float(right[bins == i].mean()) for i in range(BINS)])
    return accuracy, by_length


def bin_edges(task: Task) -> list[int]:
    """Lengths at which the bins begin, and the end of the last."""
    least, end = task.steps // 4, task.steps + 1
    return [least + (end - least) * i // BINS for i in range(BINS + 1)]


class Report(NamedTuple):
    """All that a run found out."""

    task: Task
    differences: dict[str, dict[str, float]]
    trained: dict[bool, list[Trained]]


def draw(path: Path, report: Report) -> None:
    """A batch and its outputs on top; accuracies below."""
    figure = Figure(figsize=(12, 7.6), layout="constrained")
    (left, right), (bins, batches) = figure.subplots(2, 2, height_ratios=[0.8, 1])
    draw_batch(figure, left, right, report)
    draw_bins(bins, report)
    seeds = f"median and range of {report.task.seeds} seeds"
    padded = [longer * report.task.steps for longer in report.task.longer]
    for how, runs in report.trained.items():
        label, color = HOWS[how]
        values = torch.tensor([run.accuracy for run in runs])
        batches.fill_between(padded, values.amin(0), values.amax(0), color=color, alpha=0.2, lw=0)
        batches.plot(padded, values.median(0).values, "o-", color=color, label=label)
    batches.set(title=f"The same rows, padded further ({seeds})", ylabel="accuracy")
    batches.set(xlabel="steps of the padded batch", xticks=padded)
    for axes in (bins, batches):
        axes.axhline(1 / QUARTERS, color="0.5", ls=":", label="chance")
        # Room for the legend above all that is drawn.
        axes.set(ylim=(0, 1.4), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
        axes.legend(loc="upper left", fontsize="small")
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_batch(figure: Figure, left: Axes, right: Axes, report: Report) -> None:
    """Twelve rows as the layer gets them, and one unit of its output."""
    task, model = report.task, report.trained[True][0].model
    generator = torch.Generator().manual_seed(1)
    x, lengths, _ = make_batch(task, 12, generator, torch.nan)
    with torch.no_grad():
        output, _ = model.gru(x, lengths=lengths)
    # The unit that moves most, forward.
    unit = int(output[..., : task.hidden].std((0, 1)).argmax())
    colors = colormaps["PuOr"].with_extremes(bad="0.6")
    for axes, values, title in (
        (left, x[..., 0], "A batch: gray is padding, here NaN"),
        (right, output[..., unit], "One unit of the output: zero past each row's end"),
    ):
        image = axes.imshow(
            values.mT.numpy(), cmap=colors, vmin=-1, vmax=1, aspect="auto", interpolation="none"
        )
        axes.set(title=title, xlabel="time step", ylabel="row")
        # The end of each row.
        axes.vlines(
            (lengths - 0.5).tolist(),
            [i - 0.5 for i in range(12)],
            [i + 0.5 for i in range(12)],
            color="black",
        )
    figure.colorbar(image, ax=[left, right], label="value", ticks=[-1, 0, 1], pad=0.01)


def draw_bins(axes: Axes, report: Report) -> None:
    """Accuracy by length of row: with lengths, without, and without in the longest batch."""
    longest = report.task.longer[-1] * report.task.steps
    bars = [
        (HOWS[True][0], HOWS[True][1], True, 0),
        (f"{HOWS[False][0]}, {report.task.steps} steps", HOWS[False][1], False, 0),
        (f"{HOWS[False][0]}, {longest} steps", "#f0a8a0", False, -1),
    ]
    for i, (label, color, how, batch) in enumerate(bars):
        values = torch.tensor([run.by_length[batch] for run in report.trained[how]])
        x = [group + 0.27 * (i - 1) for group in range(BINS)]
        drawn = axes.bar(x, values.median(0).values.tolist(), 0.25, color=color, label=label)
        axes.bar_label(drawn, fmt="{:.2f}", padding=2, fontsize="x-small")
    edges = bin_edges(report.task)
    names = [f"{a} to {b - 1}" for a, b in pairwise(edges)]
    axes.set_xticks(range(BINS), names)
    axes.set(title="By length of row", xlabel="steps of the row", ylabel="accuracy")


def run(quick: bool) -> Report:
    """Compare and train, and print what comes out."""
    task = Task()
    if quick:
        task = Task(
            steps=16, rows=32, hidden=16, updates=150, seeds=1, tested=400, longer=(1, 2, 4)
        )
    torch.manual_seed(0)
    found = {kind: differences(kind, task.steps, 8) for kind in ("LSTM", "GRU")}
    print("Two bidirectional layers beside torch.nn's on a packed sequence, largest difference:")
    for kind, values in found.items():
        print(f"  {kind:4}  " + ", ".join(f"{name} {value:.1e}" for name, value in values.items()))
        assert all(value < TOLERANCE for value in values.values()), values
    print("Accuracy on new rows, median of the seeds, by steps of the padded batch:")
    print(f"  {'':22}" + "".join(f"{v * task.steps:8}" for v in task.longer))
    trained = {}
    for how, (label, _) in HOWS.items():
        trained[how] = [train(task, how, seed) for seed in range(task.seeds)]
        columns = zip(*(run.accuracy for run in trained[how]), strict=True)
        print(f"  {label:22}" + "".join(f"{statistics.median(v):8.3f}" for v in columns))
    print(f"  {'chance':22}" + f"{1 / QUARTERS:8.3f}" * len(task.longer))
    return Report(task, found, trained)


def main(argv: list[str] | None = None) -> Report:
    """Read the command line, run, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: some seconds, for tests")
    parser.add_argument(
        "--figure",
        type=Path,
        default=Path("build/lengths.png"),
        metavar="PATH",
        help="where to draw (default %(default)s)",
    )
    args = parser.parse_args(argv)
    # Layers this small gain nothing from a second thread, and lose much when its core is busy.
    torch.set_num_threads(1)
    report = run(args.quick)
    draw(args.figure, report)
    print(f"Wrote {args.figure}")
    return report


if __name__ == "__main__":
    main()
