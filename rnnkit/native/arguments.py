"""The arguments of the native kernels: `struct Arguments` of csrc/arguments.h."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.sequence import Inputs

# In the order of the library.
STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}


class Arguments(NamedTuple):
    """The fields in the order of csrc, eight bytes each: sizes, strides, addresses (0: absent)."""

    T: int = 0
    B: int = 0
    N: int = 0
    H: int = 0
    E: int = 0
    runs: int = 0
    reverse: int = 0
    norm: int = 0
    of_sum: int = 0
    eps: int = 0
    x: int = 0
    x_t: int = 0
    x_b: int = 0
    x_n: int = 0
    x_g: int = 0
    w: int = 0
    b: int = 0
    s0: int = 0
    p: int = 0
    m: int = 0
    m_bytes: int = 0
    m_t: int = 0
    m_b: int = 0
    m_n: int = 0
    m_e: int = 0
    d: int = 0
    lengths: int = 0
    lengths_b: int = 0
    lengths_n: int = 0
    resets: int = 0
    resets_t: int = 0
    resets_b: int = 0
    resets_n: int = 0
    output: int = 0
    cells: int = 0
    last: int = 0
    products: int = 0
    scales: int = 0
    summed: int = 0
    activated: int = 0
    doutput: int = 0
    dcells: int = 0
    dlast: int = 0
    dx: int = 0
    dw: int = 0
    db: int = 0
    ds0: int = 0
    dp: int = 0
    input: int = 0
    w_ih: int = 0
    b_ih: int = 0
    I: int = 0  # noqa: E741
    dinput: int = 0
    dw_ih: int = 0
    db_ih: int = 0
    x_gain: int = 0
    x_scales: int = 0
    dx_gain: int = 0
    order: int = 0
    valid: int = 0


Block = ctypes.c_int64 * len(Arguments._fields)
PLACES = {name: k for k, name in enumerate(Arguments._fields)}


def address(v: Tensor | None) -> int:
    """Where a tensor's memory is; 0 for None."""
    found = 0 if v is None else v.data_ptr()
    # Kernels would take it for None.
    if found == 0 and v is not None and v.numel():
        raise TypeError(
            "expected tensors with memory of their own in this process, "
            f"got a {type(v).__name__} {tuple(v.shape)} without"
        )
    return found


def addresses(tensors: Iterable[Tensor | None]) -> list[int]:
    return [0 if v is None else address(v) for v in tensors]


@lru_cache
def bits(value: float) -> int:
    """The bits of a double, as an integer."""
    (found,) = struct.unpack("q", struct.pack("d", value))
    return int(found)


def dense(v: Tensor | None) -> Tensor | None:
    return None if v is None else v.contiguous()


def unit_stride(v: Tensor) -> Tensor:
    return v if v.stride(-1) == 1 or v.shape[-1] == 1 else v.contiguous()


def ready(inputs: Inputs) -> Inputs:
    """The inputs with the layouts and dtypes that the kernels take."""
    m, lengths = inputs.m, inputs.lengths
    if m is not None:
        m = unit_stride(m if m.dtype == torch.bool else m.to(inputs.x.dtype))
    return inputs._replace(
        x=unit_stride(inputs.x),
        w=inputs.w.contiguous(),
        b=dense(inputs.b),
        s0=dense(inputs.s0),
        p=dense(inputs.p),
        m=m,
        d=None if inputs.d is None else inputs.d.to(inputs.x.dtype).contiguous(),
        lengths=None if lengths is None else lengths.long(),
    )


def described(inputs: Inputs, more: dict[str, int]) -> Any:
    """The block of arguments: those that forward and backward share, and `more`.

    `inputs` are ready and must outlive it.
    """
    (x, *_, m, _, lengths, resets, _, reverse), cell = inputs, inputs.equations
    (T, B, N, _, H), norm = x.shape, cell.norm
    of_x, w, b, s0, p, of_m, d, of_lengths, of_resets = addresses(inputs[:9])
    leading: list[int] = [
        T, B, N, H,
        0 if m is None else m.shape[3],
        len(reverse),
        sum([back << k for k, back in enumerate(reverse)]),
        0 if norm is None else 1 if norm.per_gate else 2,
        norm is not None and norm.of_sum,
        bits(cell.eps),
        of_x, *x.stride()[:4],
        w, b, s0, p,
        of_m, m is not None and m.dtype == torch.bool,
        *((0,) * 4 if m is None else m.stride()[:4]),
        d,
        of_lengths, *((0, 0) if lengths is None else lengths.stride()),
        of_resets, *((0, 0, 0) if resets is None else resets.stride()),
    ]  # fmt: skip
    block = Block(*leading)  # the rest is zero
    for name, value in more.items():
        block[PLACES[name]] = value
    return block
