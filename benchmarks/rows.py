"""Stored rows: one JSON object a line, and what follows from comparing them.

Old rows stay and are read as if they had been stored today.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .facts import ROOT

Row = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "results"
# Ratios that differ by more disagree.
SPREAD = 0.15
OLD_CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}
# What must be equal for two measurements to be of the same thing.
SAME = ("device", "threads", "torch", "commit")


def read(path: Path) -> list[Row]:
    """The rows of a file, none if there is no file."""
    if not path.exists():
        return []
    return [today(json.loads(line)) for line in path.read_text().splitlines() if line.strip()]


def today(row: Row) -> Row:
    """The row with what was added to the schema since."""
    if "suite" in row:
        return row
    cell = OLD_CELLS.get(row["cell"], row["cell"])
    noisy = unsteady(row["ratios"])
    return {"suite": "rnn"} | row | {"cell": cell, "form": "", "noisy": noisy, "absent": {}}


def append(path: Path, rows: Iterable[Row]) -> None:
    """Adds rows to a file, and makes it first if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)


SIZES = ("T", "B", "H", "M", "N", "C", "K", "dilation", "series", "form")


def key(row: Row) -> tuple[Any, ...]:
    """What a row's problem is, its device apart."""
    return tuple(row.get(name) for name in ("suite", "cell", "mode", "dtype", *SIZES))


def said(row: Row) -> str:
    """The problem in words."""
    sizes = (f"{name}={row[name]}" for name in SIZES[:-1] if row.get(name) is not None)
    words = (row["cell"], row["mode"], row["dtype"], *sizes, row.get("form"))
    return " ".join(str(word) for word in words if word)


def spread(ratios: list[float]) -> tuple[float, float, float]:
    """p20, p50 and p80."""
    if len(ratios) < 2:
        return (ratios[0],) * 3
    tenths = statistics.quantiles(ratios, n=10, method="inclusive")
    return tenths[1], tenths[4], tenths[7]


def unsteady(ratios: list[float] | None) -> bool:
    """Whether the rounds disagree: then other work on the machine has been measured too."""
    if not ratios:
        return False
    low, middle, high = spread(ratios)
    return (high - low) / middle > SPREAD


def disagree(a: float | None, b: float | None) -> bool:
    """Whether two ratios are further apart than measurements of one thing may be."""
    return a is not None and b is not None and max(a, b) / min(a, b) - 1 > SPREAD


def alike(row: Row, other: Row) -> bool:
    """Whether two rows measured the same code in the same place."""
    clean = row["commit"] is not None and not row["commit"].endswith("-dirty")
    return clean and all(row[name] == other[name] for name in SAME)


def previous(row: Row, stored: Iterable[Row]) -> Row | None:
    """The last stored time of the same provider of the same problem on the same device."""

    def place(v: Row) -> tuple[Any, ...]:
        return key(v), v["provider"], v["device"], v.get("baseline", "torch.nn")

    found = [v for v in stored if v["ratio"] is not None and place(v) == place(row)]
    return found[-1] if found else None


def marked(row: Row, stored: list[Row]) -> Row:
    """The row, noisy if its rounds disagree, or it and the last one of the same code."""
    before = previous(row, (v for v in stored if alike(row, v)))
    noisy = unsteady(row["ratios"])
    return row | {
        "noisy": noisy or (before is not None and disagree(row["ratio"], before["ratio"]))
    }


def slower(rows: Iterable[Row], stored: list[Row]) -> list[str]:
    """A line for every row whose ratio rose beyond doubt since other code was stored."""
    lines = []
    for row in rows:
        before = previous(row, (v for v in stored if not alike(row, v)))
        if before is None or not row["ratios"]:
            continue
        # Rounds may disagree, as on a busy machine; nearly all of them must be slower.
        if spread(row["ratios"])[0] > spread(before["ratios"])[2] * (1 + SPREAD):
            change = f"{row['ratio']:.3g} times {row['baseline']}'s, {before['ratio']:.3g} at"
            lines.append(f"{row['provider']}, {said(row)}: {change} {before['commit']}")
    return lines


def beaten(rows: Iterable[Row]) -> list[str]:
    """A line for every row that is slower beyond doubt than the base measured in the same run."""
    lines = []
    for found in latest(rows).values():
        ours = found.get("rnnkit")
        bases = {name: row for name, row in found.items() if name.startswith("rnnkit @")}
        for name, base in bases.items():
            if ours is None or not ours["ratios"] or not base["ratios"]:
                continue
            # Who is far slower than the baseline takes part in fewer rounds.
            each = [a / b for a, b in zip(ours["ratios"], base["ratios"], strict=False)]
            low, middle, _ = spread(each)
            if low > 1 + SPREAD:
                lines.append(f"{said(ours)}: {middle:.3g} times {name}'s")
    return lines


def latest(rows: Iterable[Row]) -> dict[tuple[Any, ...], dict[str, Row]]:
    """The last run of every problem: its rows by provider; those that it left out, of a run
    before.
    """
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        now = found.setdefault(key(row), {})
        if "asked" not in row and any(v["date"] != row["date"] for v in now.values()):
            now.clear()
        now[row["provider"]] = row
    return found
