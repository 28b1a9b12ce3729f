"""A kernel's launch as a value: made from real tensors and run, or from meta ones and compiled."""

from __future__ import annotations

from typing import Any, NamedTuple


class Launch(NamedTuple):
    """A kernel with its grid, arguments and compiler options."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    options: dict[str, int]

    def go(self) -> None:
        self.kernel[self.grid](*self.arguments, **self.options)
