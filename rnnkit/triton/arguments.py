"""The arguments of the recurrent kernels, in groups."""

from typing import Any, NamedTuple


class Forward(NamedTuple):
    """The tensors of the forward kernel. Without RESIDENT, s0 and last are one buffer."""

    x: Any
    m: Any
    w: Any
    b: Any
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

    With ADDITIVE, r holds x + r, and x is not read.
    """

    x: Any
    m: Any
    w: Any
    p: Any
    d: Any
    r: Any
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
    """Steps first .. first + steps of T; strides of w: groups, inner units, outer units, gates."""

    first: Any
    steps: Any
    T: Any
    B: Any
    N: Any
    H: Any
    x: Any
    m: Any
    w: Any


class Static(NamedTuple):
    """What a kernel is compiled for; each is a tl.constexpr."""

    G: Any
    S: Any
    P: Any
    E: Any
    ADDITIVE: Any
    REVERSE: Any
    RUNS: Any
    RESIDENT: Any
    STREAM: Any
    DTYPE: Any
    PRECISION: Any
    BB: Any
    BH: Any
