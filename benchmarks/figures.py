"""Figures of stored rows: what they show, as plain data, and how it is drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .floors import floor
from .problem import IN_GRAPH, MODES
from .rows import Row, latest
from .suites.rnn import SHAPES, TWINS

PROVIDERS = (
    *("torch.nn", "rnnkit reference", "torch.compile", "rnnkit"),
    *(f"torch.nn{IN_GRAPH}", f"rnnkit{IN_GRAPH}"),
)
COLORS = ("#1f4e9c", "#1b7a3d", "#a01c1c", "#e0a000", "#7aa6e8", "#f0cf80")
MARKERS = ("o", "s", "^", "D", "o", "D")
LEGEND = 60  # characters
SLANT: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
Runs = list[dict[str, Row]]


class Panel(NamedTuple):
    """ticks: of the horizontal axis. series: by label, a value or None for each tick."""

    title: str
    across: str
    ticks: list[str]
    series: dict[str, list[float | None]]


class Figure(NamedTuple):
    """name: of the file. up: what the vertical axis shows. line: a value that stands out."""

    name: str
    title: str
    up: str
    columns: int
    panels: list[Panel]
    bars: bool = False
    line: float | None = None

    @property
    def digest(self) -> str:
        """What tells whether a file shows this data."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


def figures(device: str, rows: Iterable[Row]) -> list[Figure]:
    """Those that a device's rows have something for."""
    runs = [v for v in latest(rows).values() if next(iter(v.values()))["suite"] == "rnn"]
    made = [ratios(device, runs), steps(device, runs), memory(device, runs)]
    told = [v._replace(panels=[p for p in v.panels if p.series]) for v in made]
    return [figure for figure in told if figure.panels]


def plain(runs: Runs, mode: str, dtype: str) -> dict[tuple[str, int, int, int], dict[str, Row]]:
    """The rows of one layer, one direction, no lengths, by cell and shape."""
    found = {}
    for run in runs:
        row = next(iter(run.values()))
        if (row["mode"], row["dtype"], row["form"]) == (mode, dtype, ""):
            found[row["cell"], row["T"], row["B"], row["H"]] = run
    return found


def value(run: dict[str, Row] | None, provider: str, name: str) -> float | None:
    row = (run or {}).get(provider)
    return None if row is None else row.get(name)


def some(series: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
    """Those that have a value at all."""
    return {name: v for name, v in series.items() if any(x is not None for x in v)}


def dtype_of(device: str) -> str:
    return "fp32" if device == "cpu" else "bf16"


def home(device: str) -> tuple[int, int, int]:
    """The T, B, H from which figures go out."""
    return SHAPES["cpu" if device == "cpu" else "cuda"][0]


def ratios(device: str, runs: Runs) -> Figure:
    """By H, B and T, the other two as at home."""
    panels = []
    for mode in MODES[:2]:
        found = plain(runs, mode, dtype_of(device))
        for place, name in ((2, "H"), (1, "B"), (0, "T")):
            fixed = {k: v for k, v in enumerate(home(device)) if k != place}
            shapes = {v[1:] for v in found if all(v[1 + k] == size for k, size in fixed.items())}
            series: dict[str, list[float | None]] = {
                cell: [value(found.get((cell, *s)), "rnnkit", "ratio") for s in sorted(shapes)]
                for cell in TWINS
            }
            others = ", ".join(f"{'TBH'[k]} = {size}" for k, size in fixed.items())
            ticks = [str(s[place]) for s in sorted(shapes)]
            series = series if len(ticks) > 1 else {}
            panels.append(Panel(f"{mode}, {others}", name, ticks, some(series)))
    title = "rnnkit's time over torch.nn's (below 1 is faster)"
    return Figure(f"benchmarks-{device}-ratio.png", title, "ratio", 3, panels, line=1.0)


def steps(device: str, runs: Runs) -> Figure:
    """Microseconds a step at every shape, and what is the least."""
    panels = []
    found = plain(runs, MODES[0], dtype_of(device))
    for cell in TWINS:
        shapes = sorted((v[1:] for v in found if v[0] == cell), key=lambda s: (s[2], s[1], s[0]))
        each = [found[(cell, *shape)] for shape in shapes]
        series = {p: [value(run, p, "us_per_step") for run in each] for p in PROVIDERS}
        series["floor"] = [floor_of_a_step(next(iter(run.values()))) for run in each]
        ticks = [",".join(map(str, shape)) for shape in shapes]
        panels.append(Panel(f"{cell}, {MODES[0]}", "T, B, H", ticks, some(series)))
    title = "Microseconds a step against the floor (derived)"
    return Figure(f"benchmarks-{device}-step.png", title, "µs a step", 2, panels)


def floor_of_a_step(row: Row) -> float | None:
    """In microseconds."""
    whole = floor(row)
    return None if whole is None else whole * 1e3 / row["T"]


def memory(device: str, runs: Runs) -> Figure:
    """What is kept for backward, at home."""
    found = plain(runs, MODES[0], dtype_of(device))
    runs_at = {v[0]: run for v, run in found.items() if v[1:] == home(device)}
    series = {p: [value(run, p, "saved_mib") for run in runs_at.values()] for p in PROVIDERS}
    across = "T, B, H = " + ", ".join(map(str, home(device)))
    panel = Panel("", across, list(runs_at), some(series))
    title = "Memory that a layer saves for backward (input and parameters apart)"
    return Figure(f"benchmarks-{device}-memory.png", title, "MiB", 1, [panel], bars=True)


def current(figure: Figure, folder: Path) -> bool:
    """Whether the file shows the figure's data."""
    path = folder / figure.name
    return path.exists() and figure.digest.encode() in path.read_bytes()


def draw(figure: Figure, folder: Path) -> None:
    """Writes the file; its description is the data's digest."""
    from matplotlib.figure import Figure as Canvas

    columns = min(figure.columns, len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    size = (10.0 if figure.bars else 4.0 * max(columns, 2), 3.1 * rows + 1.4)
    canvas = Canvas(figsize=size, layout="constrained")
    canvas.suptitle(figure.title)
    axes = canvas.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(figure.panels) :]:
        axis.set_visible(False)
    for panel, axis in zip(figure.panels, axes.flat, strict=False):
        (draw_bars if figure.bars else draw_lines)(panel, axis)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.across)
        axis.set_ylabel(figure.up)
        axis.grid(axis="y", alpha=0.3)
        if figure.line is not None:
            axis.axhline(figure.line, color="gray", linewidth=1)
    labels: dict[str, Any] = {}
    for axis in axes.flat:
        labels |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    place: Any = "outside lower center"
    # As many in a row as the page is wide.
    count = max(1, len(labels) if sum(map(len, labels)) < LEGEND else 3)
    canvas.legend(list(labels.values()), list(labels), loc=place, ncols=count, frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    canvas.savefig(folder / figure.name, dpi=110, metadata={"Description": figure.digest})


def style(name: str, place: int) -> dict[str, Any]:
    """A provider, or a cell, looks the same in every panel."""
    names = PROVIDERS if name in PROVIDERS else tuple(TWINS)
    if name == "floor":
        return {"color": "black", "linestyle": "--", "marker": "_"}
    place = names.index(name) if name in names else place
    return {"color": COLORS[place % len(COLORS)], "marker": MARKERS[place % len(MARKERS)]}


def draw_lines(panel: Panel, axis: Any) -> None:
    """Values that span factors: on a logarithmic axis, with numbers that people read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for place, (name, values) in enumerate(panel.series.items()):
        points = [(k, v) for k, v in enumerate(values) if v is not None]
        axis.plot(*zip(*points, strict=True), label=name, markersize=4, **style(name, place))
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    long = any(len(tick) > 5 for tick in panel.ticks)
    slant = SLANT if long else {}
    axis.set_xticks(range(len(panel.ticks)), panel.ticks, **slant)
    axis.set_xlim(-0.5, max(len(panel.ticks), 1) - 0.5)


def draw_bars(panel: Panel, axis: Any) -> None:
    width = 0.8 / max(len(panel.series), 1)
    for place, (name, values) in enumerate(panel.series.items()):
        at = [k - 0.4 + width * (place + 0.5) for k in range(len(values))]
        color = style(name, place)["color"]
        axis.bar(at, [v or 0.0 for v in values], width, label=name, color=color)
    axis.set_xticks(
        range(len(panel.ticks)), panel.ticks, rotation=45, ha="right", rotation_mode="anchor"
    )
