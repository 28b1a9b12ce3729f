"""The arguments of the recurrent kernels, in groups."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Forward(NamedTuple):
    """The tensors of the forward kernel. Without RESIDENT, s0 and last are one buffer."""

    x: Any
    m: Any
    w: Any
    b: Any
    gain: Any
    p: Any
    d: Any
    s0: Any
    r: Any
    flags: Any
    output: Any
    cells: Any
    last: Any


class Backward(NamedTuple):
    """The tensors of the backward kernel. Without RESIDENT, dlast and ds0 are one buffer.

    r holds every step's r; with SUM, x + r; with NORM, the norm's result before gain and bias.
    """

    x: Any
    m: Any
    w: Any
    b: Any
    gain: Any
    p: Any
    d: Any
    r: Any
    scale: Any
    prev: Any
    doutput: Any
    dcells: Any
    dlast: Any
    flags: Any
    dx: Any
    dr: Any
    ds0: Any
    dp: Any


class Sizes(NamedTuple):
    """A launch's steps of all T; strides of w: groups, inner units, outer units, gates. end: in
    loops Triton 3.6 takes constants of an inner tuple for None, unless one of the outer follows.
    """

    steps: Any
    T: Any
    B: Any
    N: Any
    H: Any
    x: Any
    m: Any
    w: Any
    end: Any = None


class Static(NamedTuple):
    """What a kernel is compiled for; each is a tl.constexpr.

    P: rows of the step's parameters. LATE: the first gate of the second product; G if there is one
    only. SUM: the step sees x + r as r, and a zero x. NORM: none, or how gates are normalised.
    AHEAD: a step's first product is made in the step before. AT_ONCE: how many tiles change
    layout together. QUICK: results have 16 bits, and functions need no more.
    """

    G: Any
    S: Any
    P: Any
    E: Any
    LATE: Any
    SUM: Any
    NORM: Any
    EPS: Any
    REVERSE: Any
    RUNS: Any
    RESIDENT: Any
    STREAM: Any
    AHEAD: Any
    AT_ONCE: Any
    DTYPE: Any
    PRECISION: Any
    QUICK: Any
    BB: Any
    BH: Any


class Launch(NamedTuple):
    """A kernel with its grid, arguments and options: run by `go`, or compiled without a GPU."""

    kernel: Any
    grid: tuple[int, int, int]
    tensors: Any  # Forward or Backward
    sizes: Sizes
    constants: tuple[Any, Any, Static]
    options: dict[str, int]

    def go(self, first: int = 0, **tensors: Tensor) -> None:
        changed = self.tensors._replace(**tensors)
        self.kernel[self.grid](changed, self.sizes, first, *self.constants, **self.options)
