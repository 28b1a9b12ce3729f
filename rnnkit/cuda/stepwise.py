"""The stepwise form of the scan, for weights that the multiprocessors do not hold together and for
float64: each step is one product by cuBLAS and one kernel for the rest, or two of each with an
inner step, in a loop in C++.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import cells
from ..native import arguments as native
from ..native.recipes.cuda import STEPWISE_KINDS
from ..ops.sequence import Inputs
from . import arguments
from .arguments import Form
from .library import Library, name_of

PRODUCT = "cublasGemmStridedBatchedEx"
# What cuBLAS takes as the distance of two rows, CUDA as the blocks of a grid, and our kernels as
# strides and as the gates of a step: C's int.
MOST = 2**31 - 1


class Steps(NamedTuple):
    """`struct Steps` of csrc/cuda/stepwise.h in its order, eight bytes a field: addresses."""

    handle: int
    gemm: int
    states: int
    fed: int
    product: int
    kept: int


Block = ctypes.c_int64 * len(Steps._fields)


@lru_cache
def gemm() -> tuple[int, str | None]:
    """The address of cuBLAS's product, or 0 and the reason.

    It must be of the very library that torch runs on, whose handles torch gives.
    """
    try:
        # This looks through all that torch._C is linked with.
        function = getattr(ctypes.CDLL(torch._C.__file__), PRODUCT)
    except (AttributeError, OSError) as error:
        return 0, f"torch {torch.__version__} has no cuBLAS that others can call: {error}"
    return ctypes.cast(function, ctypes.c_void_p).value or 0, None


def handle(x: Tensor) -> int:
    """Torch's own for this thread, which has the current stream and a workspace."""
    return torch.cuda.current_blas_handle() if x.is_cuda else 0


@lru_cache
def find(functions: ctypes.CDLL, cell: str, kind: str) -> Any:
    """The stepwise form of a cell, None if the library has none."""
    size = functions.rnnkit_steps_size()
    if size != ctypes.sizeof(Block):
        raise OSError(f"{functions._name} takes {size} bytes of Steps")
    functions.rnnkit_stepwise.restype = ctypes.c_void_p
    number = ctypes.c_int64(STEPWISE_KINDS.index(kind))
    found = functions.rnnkit_stepwise(name_of(cell).encode(), number)
    return found and ctypes.c_void_p(found)


@lru_cache
def summed(functions: ctypes.CDLL, cell: str, kind: str) -> int:
    """Of a cell in every form: the first gates whose sums of x and products backward finds in x."""
    functions.rnnkit_summed.restype = ctypes.c_int64
    return int(functions.rnnkit_summed(find(functions, cell, kind)))


def why_not(cell: str, H: int, B: int, N: int) -> str | None:
    """Why a problem of a cell that `find` finds cannot run step by step; None if it can."""
    largest = max(B * N, N * cells.find(cell).gates * H)
    if largest > MOST:
        return f"cuBLAS takes up to {MOST} rows of the batch and gates of all groups, not {largest}"
    return gemm()[1]


def run(
    found: Library,
    kind: str,
    inputs: Inputs,
    backward: bool,
    more: dict[str, int],
    dr: Tensor | None,
) -> None:
    """Runs all steps; `more`: arguments of the scan, dr: of the form."""
    x, S = inputs.x, inputs.equations.states
    _, B, N, G, H = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    fed, made = ((G, H), (H,)) if backward else ((H,), (G, H))
    buffers = {
        "states": x.new_empty(S, B, N, H, dtype=wide),
        "fed": x.new_empty(B, N, *fed),
        "product": x.new_empty(B, N, *made, dtype=wide),
        "kept": x.new_empty(B, N, G + 1, H, dtype=wide),
    }
    with torch.cuda.device_of(x):
        steps = Steps(handle(x), gemm()[0], **{k: v.data_ptr() for k, v in buffers.items()})
        stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
        form = Form(*(0,) * len(Form._fields))._replace(
            plane=B * N * H, dr=native.address(dr), stream=stream
        )
        code = found.functions.rnnkit_stepwise_launch(
            find(found.functions, inputs.cell, kind),
            ctypes.c_int64(backward),
            native.described(inputs, more),
            arguments.Block(*form),
            Block(*steps),
        )
    if code < 0:
        raise RuntimeError(f"rnnkit's CUDA kernels: cuBLAS refuses a product, status {-code}")
    if code > 0:
        said = found.functions.rnnkit_error(code).decode()
        raise RuntimeError(f"rnnkit's CUDA kernels: {said}")
