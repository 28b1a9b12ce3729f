"""Memory of a layer's large intermediate results, used again by the next call.

The system clears every page of new memory when it is first touched, which takes a good part of the
time of a short sequence. Only for what users never see: such a tensor cannot be resized.
"""

from __future__ import annotations

import ctypes
import math
import threading
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# Below this the allocator keeps memory by itself.
LEAST_BYTES = 1 << 17
# What may lie unused.
MOST_BYTES = 1 << 26

# Never waited for: a collection of garbage may come here while it is held.
_lock = threading.Lock()
_unused: list[Tensor] = []


def put(block: Tensor) -> None:
    """Keeps a block for the next call, if there is room."""
    if not _lock.acquire(blocking=False):
        return
    try:
        if sum(v.nbytes for v in _unused) + block.nbytes <= MOST_BYTES:
            _unused.append(block)
    finally:
        _lock.release()


def take(size: int) -> Tensor:
    """A block of so many bytes."""
    if _lock.acquire(blocking=False):
        try:
            for k, block in enumerate(_unused):
                if block.nbytes == size:
                    return _unused.pop(k)
            # Sizes that are asked for no more would fill the room.
            del _unused[: len(_unused) // 2]
        finally:
            _lock.release()
    return torch.empty(size, dtype=torch.uint8, device="cpu")


@lru_cache(256)
def view_of(size: int) -> Any:
    """The type of what lends a block to a tensor, and puts it back when the tensor is gone."""

    class View(ctypes.Array):
        _type_ = ctypes.c_char
        _length_ = size
        block: Tensor

        def __del__(self) -> None:
            put(self.block)

    return View


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor of like's dtype."""
    size = math.prod(shape) * like.dtype.itemsize
    # Where new memory is filled, used memory would not be.
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    if size < LEAST_BYTES or (filled and torch.are_deterministic_algorithms_enabled()):
        return like.new_empty(shape)
    block = take(size)
    view = view_of(size).from_address(block.data_ptr())
    view.block = block
    return torch.frombuffer(view, dtype=like.dtype).view(shape)
