"""A progress bar on the error stream: a line that is overwritten, or one a step in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

WIDTH = 20


class Progress:
    """Steps that are about equally long, within a budget of seconds since a start."""

    def __init__(self, total: int, budget: float, start: float) -> None:
        self.total, self.budget, self.start, self.done = total, budget, start, 0

    def __enter__(self) -> Progress:
        return self

    def step(self, text: str) -> None:
        """Shows what begins now."""
        passed = time.monotonic() - self.start
        left = (
            min(passed / self.done * (self.total - self.done), self.budget - passed)
            if self.done
            else None
        )
        self.done += 1
        filled = WIDTH * (self.done - 1) // max(self.total, 1)
        bar = f"[{'#' * filled:.<{WIDTH}}] {self.done}/{self.total}"
        rest = "" if left is None else f" {int(left) // 60}:{int(left) % 60:02d} left"
        self.show(f"{bar}{rest} {text}")

    def show(self, line: str) -> None:
        over = sys.stderr.isatty()
        print(
            f"\r\033[K{line}" if over else line,
            end="" if over else "\n",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)
