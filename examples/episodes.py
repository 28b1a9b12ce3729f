"""Episodes in one stream: an LSTM whose state starts afresh where an episode starts.

    python examples/episodes.py --figure build/episodes.png

A rollout of a recurrent agent holds the end of one episode and the start of the next. The usual way
is a loop over time that multiplies the state by zero at each start; with rnnkit it is one call with
`resets`. This prints that both agree and how long they take, and trains a small memory task.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import rnnkit

State = tuple[Tensor, Tensor]
# What a model of the memory task knows of the starts: label and color.
HOWS = {
    "resets": ("resets at the starts", "#1b7a3d"),
    "flag": ("starts as one more input", "#e0a000"),
    "nothing": ("neither", "#a01c1c"),
}
SMOOTHING = 10
TOLERANCE = 1e-12  # of float64, for sums of some hundred terms of size one


def in_a_loop(lstm: nn.LSTM, x: Tensor, state: State, starts: Tensor) -> tuple[Tensor, State]:
    """As RecurrentPPO of sb3-contrib: step by step, unless no episode starts in the whole batch.

    Args:
        lstm: one layer.
        x: (T, B, I).
        state: h and c, (1, B, H), of the step before.
        starts: (T, B), bool: True where a step is the first of an episode.
    """
    if not starts.any():
        return lstm(x, state)
    outputs = []
    for x_t, keep in zip(x, 1 - starts.to(x.dtype), strict=True):
        h, c = state
        output, state = lstm(x_t[None], (keep[None, :, None] * h, keep[None, :, None] * c))
        outputs.append(output)
    return torch.cat(outputs), state


def in_one_call(lstm: rnnkit.LSTM, x: Tensor, state: State, starts: Tensor) -> tuple[Tensor, State]:
    """The same for any number of layers."""
    return lstm(x, state, resets=starts)


class Rollout(NamedTuple):
    """A random rollout, and the same weights in both libraries' LSTM."""

    theirs: nn.LSTM
    ours: rnnkit.LSTM
    x: Tensor
    state: State
    starts: Tensor


def make_rollout(steps: int, rows: int, inputs: int, hidden: int, dtype: torch.dtype) -> Rollout:
    """Episodes of 32 steps on average, and a state that is left from the rollout before."""
    theirs = nn.LSTM(inputs, hidden, dtype=dtype)
    ours = rnnkit.LSTM(inputs, hidden, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    h, c = torch.randn(2, 1, rows, hidden, dtype=dtype)
    starts = torch.rand(steps, rows) < 1 / 32
    starts[steps // 2, 0] = True  # one at least, lest the loop takes its short cut
    x = torch.randn(steps, rows, inputs, dtype=dtype)
    return Rollout(theirs, ours, x, (h, c), starts)


def differences(rollout: Rollout) -> dict[str, float]:
    """The largest differences between both ways: of outputs, final states and gradients."""
    theirs, ours, x, state, starts = rollout
    leaves = [x, *state]
    for leaf in leaves:
        leaf.requires_grad_()
    found: list[tuple[list[Tensor], ...]] = []
    for output, final, lstm in (
        (*in_a_loop(theirs, x, state, starts), theirs),
        (*in_one_call(ours, x, state, starts), ours),
    ):
        # Of every element some other function, so that no error cancels another.
        loss = output.sin().square().sum() + sum(v.cos().sum() for v in final)
        gradients = torch.autograd.grad(loss, [*leaves, *lstm.parameters()])
        tensors = [output], [*final], [*gradients]
        found.append(tuple([v.detach() for v in group] for group in tensors))
    names = ("output", "final state", "gradients")
    return {
        name: largest([a - b for a, b in zip(*pair, strict=True)])
        for name, pair in zip(names, zip(*found, strict=True), strict=True)
    }


def largest(tensors: list[Tensor]) -> float:
    """The largest absolute value of all elements; NaN if there is one."""
    return float(torch.stack([v.abs().max() for v in tensors]).max())


class Times(NamedTuple):
    """Medians of the seconds of forward and backward."""

    hidden: int
    loop: float
    one_call: float


def measure(steps: int, hidden: int, rounds: int) -> Times:
    """Eight sequences with 64 inputs in float32; turn about, so that both meet the same machine."""
    rollout = make_rollout(steps, 8, 64, hidden, torch.float32)
    theirs, ours, x, state, starts = rollout
    calls: tuple[Callable[[], tuple[Tensor, State]], ...] = (
        lambda: in_a_loop(theirs, x, state, starts),
        lambda: in_one_call(ours, x, state, starts),
    )
    seconds: list[list[float]] = [[], []]
    for _ in range(1 + rounds):
        for call, log in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            output, _ = call()
            output.sum().backward()
            log.append(time.perf_counter() - start)
    # The first round warms up.
    return Times(hidden, *(statistics.median(log[1:]) for log in seconds))


class Task(NamedTuple):
    """The memory task: recall, at each step, the symbol of the episode's first step.

    Every step shows a symbol, so nothing in the symbols tells where an episode starts.
    """

    symbols: int = 8
    hidden: int = 64
    episode: int = 16  # steps, on average
    rows: int = 32
    window: int = 48  # steps between updates; the state goes on from one to the next
    updates: int = 400
    seeds: int = 3


class Stream(NamedTuple):
    """Episodes after one another: all (T, B)."""

    symbols: Tensor
    starts: Tensor
    targets: Tensor
    ages: Tensor  # steps since the start


def make_stream(task: Task, steps: int, seed: int) -> Stream:
    """Random episodes in each row."""
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, task.rows)
    symbols = torch.randint(task.symbols, shape, generator=generator)
    starts = torch.rand(shape, generator=generator) < 1 / task.episode
    starts[0] = True
    now = torch.arange(steps)[:, None]
    first = torch.where(starts, now, 0).cummax(0).values
    return Stream(symbols, starts, symbols.gather(0, first), now - first)


class Recall(nn.Module):
    """An LSTM and a linear readout, told of the starts in one way of HOWS."""

    def __init__(self, task: Task, how: str) -> None:
        super().__init__()
        self.how, self.symbols = how, task.symbols
        self.lstm = rnnkit.LSTM(task.symbols + (how == "flag"), task.hidden)
        self.readout = nn.Linear(task.hidden, task.symbols)

    def encode(self, symbols: Tensor, starts: Tensor) -> Tensor:
        """One-hot symbols, and with "flag" the starts."""
        x = F.one_hot(symbols, self.symbols)
        if self.how == "flag":
            x = torch.cat([x, starts[..., None]], -1)
        return x.to(self.readout.weight.dtype)

    def forward(
        self, symbols: Tensor, starts: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Scores (T, B, symbols) of a window, for training."""
        resets = starts if self.how == "resets" else None
        output, state = self.lstm(self.encode(symbols, starts), state, resets=resets)
        return self.readout(output), state

    def step(
        self, symbols: Tensor, starts: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Scores (B, symbols) of one step, as an agent needs them while it acts."""
        if state is not None and self.how == "resets":
            h, c = state
            state = (h.masked_fill(starts[:, None], 0), c.masked_fill(starts[:, None], 0))
        output, (h, c) = self.lstm.step(self.encode(symbols, starts), state)
        return self.readout(output), (h, c)


class Trained(NamedTuple):
    """A model, its accuracy at each update, and that on a new stream by steps since the start."""

    model: Recall
    history: list[float]
    accuracy: float
    by_age: list[float]


def train(task: Task, how: str, seed: int) -> Trained:
    """Adam on one window after another of one long stream, the state going on."""
    torch.manual_seed(seed)
    model = Recall(task, how)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    stream = make_stream(task, task.updates * task.window, seed)
    state, history = None, []
    for symbols, starts, targets, _ in zip(*(v.split(task.window) for v in stream), strict=True):
        scores, (h, c) = model(symbols, starts, state)
        state = (h.detach(), c.detach())
        optimizer.zero_grad()
        F.cross_entropy(scores.flatten(0, 1), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(float((scores.argmax(-1) == targets).float().mean()))
    right, ages = act(model, make_stream(task, 8 * task.window, 1000 + seed))
    by_age = [float(right[ages == age].mean()) for age in range(2 * task.episode)]
    return Trained(model, history, float(right.mean()), by_age)


@torch.no_grad()
def act(model: Recall, stream: Stream) -> tuple[Tensor, Tensor]:
    """Where a model is right on a stream that comes step by step, and the steps since the start."""
    scores, state = [], None
    for symbols, starts in zip(stream.symbols, stream.starts, strict=True):
        score, state = model.step(symbols, starts, state)
        scores.append(score)
    return (torch.stack(scores).argmax(-1) == stream.targets).float(), stream.ages


class Report(NamedTuple):
    """All that a run found out."""

    task: Task
    steps: int
    differences: dict[str, float]
    times: list[Times]
    trained: dict[str, list[Trained]]


def draw(path: Path, report: Report) -> None:
    """Learning curves, accuracy by steps since the start, and times."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    curves, ages, bars = figure.subplots(1, 3, width_ratios=[1, 1, 0.9])
    for how, runs in report.trained.items():
        label, color = HOWS[how]
        history = torch.tensor([run.history for run in runs])
        draw_runs(curves, history.unfold(1, SMOOTHING, 1).mean(-1), color, label, SMOOTHING)
        draw_runs(ages, torch.tensor([run.by_age for run in runs]), color, label, 0)
    seeds = f"median and range of {report.task.seeds} seeds"
    curves.set(title=f"Training ({seeds})", xlabel="updates")
    ages.set(title="New stream, step by step", xlabel="steps since the episode's start")
    for axes in (curves, ages):
        axes.axhline(1 / report.task.symbols, color="0.5", ls=":", label="chance")
        axes.set(ylim=(0, 1.03), ylabel="share of symbols recalled", xlim=0)
        axes.grid(alpha=0.3)
    handles, labels = curves.get_legend_handles_labels()
    ages.legend(handles, labels, loc="center right", bbox_to_anchor=(1, 0.55))
    draw_times(bars, report)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_runs(axes: Axes, runs: Tensor, color: str, label: str, start: int) -> None:
    """The median of the runs, over the range that they cover."""
    x = range(start, start + runs.shape[1])
    axes.fill_between(x, runs.amin(0), runs.amax(0), color=color, alpha=0.2, lw=0)
    axes.plot(x, runs.median(0).values, color=color, label=label)


def draw_times(axes: Axes, report: Report) -> None:
    """Two bars for each size."""
    bars = [
        ("loop over time, torch.nn.LSTM", "0.65", -0.2, [t.loop for t in report.times]),
        ("one call, rnnkit.LSTM", HOWS["resets"][1], 0.2, [t.one_call for t in report.times]),
    ]
    for label, color, shift, seconds in bars:
        x = [i + shift for i in range(len(seconds))]
        drawn = axes.bar(x, [1e3 * s for s in seconds], 0.36, color=color, label=label)
        axes.bar_label(drawn, fmt="{:.0f}" if max(seconds) > 0.01 else "{:.1f}", padding=2)
    axes.set_xticks(range(len(report.times)), [f"{t.hidden} units" for t in report.times])
    axes.set(
        ylabel="milliseconds, forward and backward", title=f"8 sequences of {report.steps} steps"
    )
    axes.set_ylim(0, 1.35e3 * max(max(t[1:]) for t in report.times))
    axes.legend(loc="upper left")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def run(quick: bool) -> Report:
    """Compare, measure and train, and print what comes out."""
    steps, sizes, rounds, task = 128, (64, 256), 9, Task()
    if quick:
        steps, sizes, rounds = 16, (8, 16), 2
        task = Task(4, 32, episode=8, rows=16, window=16, updates=200, seeds=1)
    torch.manual_seed(0)
    found = differences(make_rollout(steps, 8, 16, 32, torch.float64))
    print(f"Loop and one call, largest difference in float64, {steps} steps:")
    for name, difference in found.items():
        print(f"  {name:11}  {difference:.1e}")
    assert all(difference < TOLERANCE for difference in found.values()), found
    print("Forward and backward, 8 sequences, 64 inputs, float32, medians:")
    times = [measure(steps, hidden, rounds) for hidden in sizes]
    for hidden, loop, one_call in times:
        ratio = f"{loop / one_call:.2f} times as long"
        print(f"  {hidden:3} units  loop {1e3 * loop:.1f} ms, {ratio} as {1e3 * one_call:.1f} ms")
    print("Recall of an episode's first symbol on a new stream, median of the seeds:")
    trained = {}
    for how, (label, _) in HOWS.items():
        trained[how] = [train(task, how, seed) for seed in range(task.seeds)]
        print(f"  {label:24}  {statistics.median(t.accuracy for t in trained[how]):.3f}")
    print(f"  {'chance':24}  {1 / task.symbols:.3f}")
    return Report(task, steps, found, times, trained)


def main(argv: list[str] | None = None) -> Report:
    """Read the command line, run, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: some seconds, for tests")
    parser.add_argument(
        "--figure",
        type=Path,
        default=Path("build/episodes.png"),
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
