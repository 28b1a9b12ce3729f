"""The README's table, docs/benchmarks.md and its figures, all from the stored rows.

    python -m benchmarks report [--check]

With --check nothing is written, and the exit status is 1 if something is not up to date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .facts import ROOT
from .figures import PROVIDERS, Figure, current, draw, figures, home
from .floors import floor, moved, operations
from .problem import IN_GRAPH, MODES
from .rows import RESULTS, Row, latest, read, said

MARKS = ("<!-- benchmarks: python -m benchmarks report -->", "<!-- end of benchmarks -->")
# Of a cell that the README shows: its kind and at most one option.
MOST_WORDS = 2
FORECASTING = ("torch.nn", "keras", "rnnkit")
HEAD = """\
# Benchmarks

Made by `python -m benchmarks report` from benchmarks/results, which `python -m benchmarks run` adds
to. Providers take turns over several rounds; a time is p20 / p50 / p80 in ms a call, the ratio that
to the baseline's, the first provider of a problem, round by round. The error is the largest of any
result or gradient, relative to float64; above its bound nothing is timed. `noisy`: the rounds, or
two runs of the same code, disagree by more than 15 %.

The floor is derived: on a CPU a layer's products at the speed that the largest ones reach there, on
an H100 what moving and multiplying in a step take at least (`benchmarks/floors.py`); `of floor` is
its share of the time, 100 % as fast as can be. GFLOP/s count the matrix products alone, GB/s what a
layer norm must read and write. Saved is what a call keeps for backward, input and parameters apart;
peak what it takes of a GPU's memory at most.
"""
UNDER = """\
`rnnkit reference` is the loop over time in plain PyTorch, and torch.compile compiles a step of it.
The last column is rnnkit's speed over that of the fastest other, both without a CUDA graph, in
which the host has no part. A question mark: rounds or runs disagree by more than 15 %. Every time
is of a result that has been compared with float64.
[docs/benchmarks.md](docs/benchmarks.md) has every row, errors and figures."""
NO_GPU = """\
**GPU times have not been measured yet**: on a machine with one, `make gpu` measures them, and
`python -m benchmarks report` adds them here."""


def results(folder: Path) -> dict[str, list[Row]]:
    """The rows of each file by its name: those of the machine that measured last."""
    found = {path.stem: read(path) for path in sorted(folder.glob("*.jsonl"))}
    return {
        name: [v for v in rows if v["device"] == rows[-1]["device"]]
        for name, rows in found.items()
        if rows
    }


def ms(row: Row | None) -> str:
    """The median, and a mark where it is not to be relied on."""
    if row is None:
        return "-"
    if row["failure"] is not None:
        return "failed"
    return f"{row['p50_ms']:.3g}{'?' if row['noisy'] else ''}"


def times(found: dict[str, Row]) -> str:
    """How many times as fast as the best of the others ours is, of those of one run."""
    ours = found.get("rnnkit")
    if ours is None or not ours["p50_ms"]:
        return "-"
    beside = {k: v for k, v in found.items() if v["p50_ms"] and v["date"] == ours["date"]}
    eager = {k: v for k, v in beside.items() if not k.endswith(IN_GRAPH)}
    others = {k: v for k, v in eager.items() if not k.startswith("rnnkit")}
    others = others or {k: v for k, v in eager.items() if k == "rnnkit reference"}
    if not others:
        return "-"
    best = min(others, key=lambda name: others[name]["p50_ms"])
    return f"{others[best]['p50_ms'] / ours['p50_ms']:.2f} x {best}"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *lines]
    return [f"| {' | '.join(row)} |" for row in rows]


def runs_of(rows: list[Row], suite: str) -> list[dict[str, Row]]:
    """The last run of each problem of a suite."""
    runs = latest(rows).values()
    return [run for run in runs if next(iter(run.values()))["suite"] == suite]


def machine(rows: list[Row]) -> str:
    row = rows[-1]
    threads = "" if row.get("cuda") else f", {row['threads']} threads"
    return f"{row['device']}{threads}, torch {row['torch']}"


def layer_table(device: str, rows: list[Row]) -> list[str]:
    """The README's table of recurrent layers: the cells with at most one option, at one shape."""
    shown = []
    for run in runs_of(rows, "rnn"):
        row = next(iter(run.values()))
        shape = (row["T"], row["B"], row["H"])
        few = len(row["cell"].split("_")) <= MOST_WORDS and row["mode"] in MODES[:2]
        if few and not row["form"] and shape == home(device):
            shown.append((row, run))
    if not shown:
        return []
    providers = [name for name in PROVIDERS if any(name in run for _, run in shown)]
    lines = [
        [row["cell"], row["mode"], row["dtype"], *(ms(run.get(name)) for name in providers),
         times(run)]
        for row, run in sorted(shown, key=lambda pair: MODES.index(pair[0]["mode"]))
    ]  # fmt: skip
    T, B, H = home(device)
    head = f"Milliseconds a call, T = {T}, B = {B}, H = I = {H}, on {machine(rows)}:"
    return [head, "", *markdown(("cell", "mode", "dtype", *providers, "speed"), lines), ""]


def forecasting_table(rows: list[Row]) -> list[str]:
    """An epoch of each model."""
    lines = []
    for run in runs_of(rows, "forecasting"):
        row = next(iter(run.values()))
        lines.append([row["cell"], *(ms(run.get(name)) for name in FORECASTING), times(run)])
    if not lines:
        return []
    head = (
        "Milliseconds of a training epoch of the forecasting models, 1,400 series in batches of 32:"
    )
    return [head, "", *markdown(("model", *FORECASTING, "speed"), lines), ""]


def section(found: dict[str, list[Row]]) -> list[str]:
    """What the README says between the marks."""
    lines = []
    for device, rows in found.items():
        lines += [*layer_table(device, rows), *forecasting_table(rows)]
    lines += [UNDER]
    return lines if any(name != "cpu" for name in found) else [*lines, "", NO_GPU]


def page(found: dict[str, list[Row]]) -> str:
    """docs/benchmarks.md."""
    lines = [HEAD]
    for device, rows in found.items():
        lines += [f"## {machine(rows)}", ""]
        for figure in figures(device, rows):
            lines += [f"![{figure.title}]({figure.name})", ""]
        for suite in dict.fromkeys(row["suite"] for row in rows):
            lines += [f"### {suite}", "", *all_rows(runs_of(rows, suite)), ""]
        lines += [*absences(rows), ""]
    if not any(name != "cpu" for name in found):
        lines += [NO_GPU, ""]
    return "\n".join(lines)


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def spread(row: Row) -> str:
    """p20 / p50 / p80, or why there are none."""
    return row["failure"] or " / ".join(number(row[p]) for p in ("p20_ms", "p50_ms", "p80_ms"))


def ratio(row: Row) -> str:
    found = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return found + " noisy" * bool(row["noisy"])


def error(row: Row) -> str:
    return "-" if row["error"] is None else f"{row['error']:.0e} ({row['error_bound']:.0e})"


def rate(row: Row, amount: float | None) -> str:
    """Billions of an amount each second of a call."""
    time = row["p50_ms"]
    return number(None if amount is None or not time else amount / time / 1e6)


def of_floor(row: Row) -> str:
    """The floor's share of the time: 100 % is as fast as can be."""
    least, time = floor(row), row["p50_ms"]
    return "-" if least is None or not time else f"{least / time:.0%}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "problem": said,
    "provider": lambda row: row["provider"],
    "p20 / p50 / p80": spread,
    "ratio": ratio,
    "us/step": lambda row: number(row["us_per_step"]),
    "GFLOP/s": lambda row: rate(row, operations(row)),
    "GB/s": lambda row: rate(row, moved(row)),
    "of floor": of_floor,
    "saved, MiB": lambda row: number(row["saved_mib"]),
    "peak, MiB": lambda row: number(row.get("peak_mib")),
    "error (bound)": error,
    "first call, s": lambda row: number(row["first_call_s"], 2),
    "of": lambda row: f"{row['commit']}, {row['date'][:10]}",
}


def all_rows(runs: list[dict[str, Row]]) -> list[str]:
    """Every row of these runs, without the columns that none has anything in."""
    lines = [[entry(row) for entry in COLUMNS.values()] for run in runs for row in run.values()]
    shown = [k for k, column in enumerate(zip(*lines, strict=True)) if set(column) != {"-"}]
    head = list(COLUMNS)
    return markdown([head[k] for k in shown], ([line[k] for k in shown] for line in lines))


def absences(rows: list[Row]) -> list[str]:
    """Who is not measured where, and why: each reason once."""
    reasons: dict[str, None] = {}
    for run in latest(rows).values():
        for row in run.values():
            for name, why in (row.get("absent") or {}).items():
                reasons[f"* {name}: {why}"] = None
    return ["Absent:", "", *sorted(reasons)] if reasons else []


def with_section(text: str, lines: list[str]) -> str:
    """The README with new lines between the marks."""
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return "\n".join([before + MARKS[0], *lines, MARKS[1] + after])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing, say what is stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of stored rows")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README.md and docs")
    args = parser.parse_args(argv)
    found = results(args.results)
    readme, docs = args.root / "README.md", args.root / "docs"
    texts = {readme: with_section(readme.read_text(), section(found))}
    texts[docs / "benchmarks.md"] = page(found)
    drawn = [figure for device, rows in found.items() for figure in figures(device, rows)]
    stale = {path: text for path, text in texts.items() if not same(path, text)}
    old = [figure for figure in drawn if not current(figure, docs)]
    if args.check:
        return report_stale([*map(str, stale), *(str(docs / figure.name) for figure in old)])
    write(stale, old, docs)
    return 0


def same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def report_stale(names: list[str]) -> int:
    for name in names:
        print(f"{name} is stale: python -m benchmarks report", file=sys.stderr)
    return int(bool(names))


def write(texts: dict[Path, str], drawn: list[Figure], docs: Path) -> None:
    """Writes what is stale, and says so."""
    docs.mkdir(exist_ok=True)
    for path, text in texts.items():
        path.write_text(text)
    for figure in drawn:
        draw(figure, docs)
    for name in (*texts, *(docs / figure.name for figure in drawn)):
        print(name)


if __name__ == "__main__":
    sys.exit(main())
