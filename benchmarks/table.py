"""Stored rows as a table that people read: one line a problem, one column a provider."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

__all__ = ["failures", "table"]

KEYS = ("cell", "mode", "dtype", "T", "B", "H")
# Between the p20 and p80 of the rounds' ratios, over their median.
SPREAD = 0.15
Row = dict[str, Any]


def entry(row: Row | None) -> str:
    """The time in ms and its ratio to the baseline."""
    if row is None:
        return "-"
    if row["failure"] is not None:
        return "failed"
    ratio = "" if row["ratio"] in (None, 1.0) else f" ({row['ratio']:.2f})"
    return f"{row['p50_ms']:.3g}{ratio}{'?' if unsteady(row['ratios']) else ''}"


def unsteady(ratios: list[float]) -> bool:
    """Whether the rounds disagree: then other work on the machine has been measured too."""
    if len(ratios) < 2:
        return False
    tenths = statistics.quantiles(ratios, n=10, method="inclusive")
    return (tenths[7] - tenths[1]) / tenths[4] > SPREAD


def table(rows: Iterable[Row]) -> str:
    """Aligned columns: the problem, then p50 in ms and the ratio of each provider."""
    problems: dict[tuple[Any, ...], dict[str, Row]] = {}
    providers: dict[str, None] = {}
    for row in rows:
        problems.setdefault(tuple(row[key] for key in KEYS), {})[row["provider"]] = row
        providers[row["provider"]] = None
    lines = [[*KEYS, *providers]]
    for problem, found in problems.items():
        lines.append([*map(str, problem), *(entry(found.get(name)) for name in providers)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head = "ms a call, median (time / torch.nn's: below 1 is faster; ?: unsteady)"
    aligned = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join([head, *aligned])


def failures(rows: Iterable[Row]) -> list[str]:
    """A line for each row that has a failure instead of a time."""
    return [
        f"{row['provider']}, {' '.join(str(row[key]) for key in KEYS)}: {row['failure']}"
        for row in rows
        if row["failure"] is not None
    ]
