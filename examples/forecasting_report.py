"""What training came to: a table, the same as JSON lines, and a figure."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from forecasting_data import HORIZON, INPUT_STEPS, Data
from forecasting_models import Model
from forecasting_training import Run, Trainee
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

import rnnkit

SHOWN_SERIES = 0
SHOWN_STEPS = 30
COLUMNS = 3
# A hue per family of models, lighter for the variant.
COLORS = {
    "rnn": "#1f4e9c",
    "rnn-layer-norm": "#6fa8ff",
    "lstm": "#1b7a3d",
    "lstm-peephole": "#7fd08f",
    "gru": "#a01c1c",
    "gru-reset-before": "#ff8a80",
    "conv-gru": "#e0a000",
    "wavenet-simple": "#6a2c91",
    "wavenet-gated": "#c79be0",
}


class Result(NamedTuple):
    """One model's runs, one a seed."""

    key: str
    model: Model
    runs: list[Run]

    def median(self, value: Callable[[Run], float]) -> float:
        """The median over the seeds."""
        return statistics.median(map(value, self.runs))

    @property
    def middle(self) -> Run:
        """The run with the median error (of two middle ones the worse): the one to draw."""
        ranked = sorted(self.runs, key=lambda run: run.ours.history[-1].last_step)
        return ranked[len(ranked) // 2]


def row(result: Result) -> dict[str, Any]:
    """The table's row for one model: medians over the seeds, under JSON's names."""
    ours = result.runs[0].ours
    cells = {
        "model": result.model.title,
        "parameters": sum(p.numel() for p in ours.net.parameters()),
        "valid_mse": result.median(lambda run: run.ours.history[-1].valid),
        "last_step_mse": result.median(lambda run: run.ours.history[-1].last_step),
        "published": result.model.published,
        "seconds_per_epoch": result.median(lambda run: run.ours.seconds),
        "backend": result.runs[0].backend,
    }
    twins = [run.twin for run in result.runs if run.twin]
    if twins:
        cells["twin_last_step_mse"] = statistics.median(t.history[-1].last_step for t in twins)
        cells["twin_seconds_per_epoch"] = statistics.median(t.seconds for t in twins)
    return cells


def table(results: Sequence[Result], twins: bool) -> str:
    """The rows as aligned text; a dash where there is nothing to say."""
    layout = [
        ("model", "model", "s"),
        ("parameters", "parameters", "d"),
        ("valid_mse", "valid MSE", ".4f"),
        ("last_step_mse", "last-step MSE", ".4f"),
        ("published", "published", ".4f"),
        ("seconds_per_epoch", "s/epoch", ".2f"),
        ("backend", "backend", "s"),
    ]
    if twins:
        layout[-1:-1] = [
            ("twin_last_step_mse", "torch.nn MSE", ".4f"),
            ("twin_seconds_per_epoch", "torch.nn s/epoch", ".2f"),
        ]
    rows = [row(result) for result in results]
    columns = []
    for key, title, form in layout:
        values = [cells.get(key) for cells in rows]
        texts = [title] + ["-" if value is None else format(value, form) for value in values]
        pad = str.ljust if form == "s" else str.rjust
        columns.append([pad(text, max(map(len, texts))) for text in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def write_json(path: Path, results: Sequence[Result], setting: dict[str, Any]) -> None:
    """One line a model: its row, what made it, and the full history of every seed."""
    setting = setting | {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rnnkit": rnnkit.__version__,
    }
    with path.open("w") as file:
        for result in results:
            runs = [record(run) for run in result.runs]
            print(json.dumps(row(result) | setting | {"runs": runs}), file=file)


def record(run: Run) -> dict[str, Any]:
    """One seed's history, epoch by epoch."""

    def epochs(trainee: Trainee) -> list[dict[str, float]]:
        return [epoch._asdict() for epoch in trainee.history]

    twin = {"twin_epochs": epochs(run.twin)} if run.twin else {}
    return {"seed": run.seed, "epochs": epochs(run.ours)} | twin


def draw(path: Path, results: Sequence[Result], data: Data) -> None:
    """Forecasts of one validation series on top, a panel a model, and learning curves below."""
    rows = -(-len(results) // COLUMNS)
    figure = Figure(figsize=(12, 2.3 * rows + 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=[2.3 * rows, 4.6])
    top, bottom = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    panels = top.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(results) :]:
        panel.remove()
    for panel, result in zip(panels.flat, results, strict=False):
        draw_forecast(panel, result, data)
        panel.xaxis.set_tick_params(labelbottom=True)
    top.suptitle(f"Forecasts of the next {HORIZON} values of a validation series")
    top.supxlabel("time step", fontsize="medium")
    top.supylabel("value", fontsize="medium")
    top.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper")
    draw_curves(bottom, results)
    figure.savefig(path, dpi=110)


def draw_forecast(axes: Axes, result: Result, data: Data) -> None:
    """The end of the input, what followed it, and what the model says follows."""
    x, y = (part[SHOWN_SERIES] for part in data.valid)
    with torch.no_grad():
        forecast = result.middle.ours.net.eval()(x[None])[0, -1]
    future = range(INPUT_STEPS, INPUT_STEPS + HORIZON)
    past = range(INPUT_STEPS - SHOWN_STEPS, INPUT_STEPS)
    axes.plot(past, x[-SHOWN_STEPS:, 0].cpu(), color="0.6", label="input")
    axes.plot(future, y[-1].cpu(), "o-", color="black", markersize=4, label="true")
    axes.plot(future, forecast.cpu(), "x-", color="tab:red", markersize=5, label="forecast")
    error = result.median(lambda run: run.ours.history[-1].last_step)
    axes.set_title(f"{result.model.title} (MSE {error:.4f})", fontsize="medium")


def draw_curves(figure: SubFigure, results: Sequence[Result]) -> None:
    """Errors against epochs on a log scale; twins, where trained, as circles on the lines."""
    left, right = figure.subplots(1, 2)
    for axes, field in ((left, "train"), (right, "last_step")):
        for result in results:
            color = COLORS[result.key]
            draw_history(axes, result.middle.ours, field, ".-", color, result.model.title)
            if result.middle.twin:
                draw_history(axes, result.middle.twin, field, "o", color, None)
        axes.set(xlabel="epoch", ylabel="mean squared error", yscale="log")
        axes.set_xlim(left=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    left.set_title("Training, all steps")
    right.set_title("Validation, last step")
    handles, _ = left.get_legend_handles_labels()
    if any(result.middle.twin for result in results):
        handles.append(Line2D([], [], marker="o", color="0.3", ls="", mfc="none", label="torch.nn"))
    figure.legend(handles=handles, loc="outside right upper")


def draw_history(
    axes: Axes, trainee: Trainee, field: str, style: str, color: str, label: str | None
) -> None:
    """One curve: a field of every epoch."""
    values = [getattr(epoch, field) for epoch in trainee.history]
    axes.plot(range(1, len(values) + 1), values, style, color=color, mfc="none", label=label)
