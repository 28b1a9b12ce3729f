"""Rows as a table that people read: one line a problem, one column a provider."""

from __future__ import annotations

from collections.abc import Iterable

from .rows import Row, key, said

__all__ = ["entry", "failures", "table"]


def entry(row: Row | None) -> str:
    """The time in ms and its ratio to the baseline."""
    if row is None:
        return "-"
    if row["failure"] is not None:
        return "failed"
    ratio = "" if row["ratio"] in (None, 1.0) else f" ({row['ratio']:.2f})"
    return f"{row['p50_ms']:.3g}{ratio}{'?' if row['noisy'] else ''}"


def table(rows: Iterable[Row]) -> str:
    """Aligned columns: the problem, then p50 in ms and the ratio of each provider."""
    problems: dict[tuple[object, ...], dict[str, Row]] = {}
    providers: dict[str, None] = {}
    for row in rows:
        problems.setdefault(key(row), {})[row["provider"]] = row
        providers[row["provider"]] = None
    lines = [["problem", *providers]]
    for found in problems.values():
        problem = said(next(iter(found.values())))
        lines.append([problem, *(entry(found.get(name)) for name in providers)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head = "ms a call, median (time / the first provider's: below 1 is faster; ?: noisy)"
    aligned = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join([head, *aligned])


def failures(rows: Iterable[Row]) -> list[str]:
    """A line for each row that has a failure instead of a time."""
    return [
        f"{row['provider']}, {said(row)}: {row['failure']}"
        for row in rows
        if row["failure"] is not None
    ]
