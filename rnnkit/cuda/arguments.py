"""The arguments of a launch: `struct Form` of csrc/cuda/arguments.h."""

from __future__ import annotations

import ctypes
from typing import NamedTuple


class Form(NamedTuple):
    """The fields in the order of csrc, eight bytes each: sizes, addresses (0: absent)."""

    blocks: int
    slices: int
    chunks: int
    plane: int
    dr: int
    exchange: int
    arrivals: int
    pitch: int
    stream: int


Block = ctypes.c_int64 * len(Form._fields)
