"""One step of a plain layer without gradients: with as little Python as can be, since at one row
that takes longer than the kernel.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import dispatch
from ..cells import find
from ..native.arguments import Arguments, Block, address
from . import library

grad_is_on, empty_like, threads = torch.is_grad_enabled, torch.empty_like, torch.get_num_threads
autocast_is_on = torch.is_autocast_enabled
copy_of = Block.from_buffer_copy
compiling = torch.compiler.is_compiling
functorch_is_on = torch._C._are_functorch_transforms_active
dispatch_modes = torch._C._len_torch_dispatch_stack
AT = {name: k for k, name in enumerate(Arguments._fields)}
AT_B, H, I = AT["B"], AT["H"], AT["I"]  # noqa: E741
INPUT, W_IH, B_IH, W, BIAS, P = (AT[name] for name in ("input", "w_ih", "b_ih", "w", "b", "p"))
H_OLD, C_OLD, H_NEW, C_NEW = (AT[name] for name in ("s0", "cells", "output", "last"))


def has_step(cell: str) -> bool:
    """Whether the kernels have the cell's single step: not where there is a norm."""
    equations = find(cell)
    return equations.norm is None and not equations.normalises and len(equations.parameters) < 2


class Step:
    """The step of one direction of a module's weights, which remembers what it found of them."""

    def __init__(self, cell: str, suffix: str = "") -> None:
        own = [parameter.name for parameter in find(cell).parameters]
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", *own)
        self.cell, self.suffix, self.two = cell, suffix, find(cell).states == 2
        self.names = [name + suffix for name in names]
        self.known: list[Any] = []

    def __reduce__(self) -> Any:
        # What is known is of this process and these weights: a copy learns it anew.
        return Step, (self.cell, self.suffix)

    def __call__(self, input: Tensor, hx: Any, parameters: dict[str, Any]) -> Any:
        """The next state of a module with these parameters, in the form of hx, each (B, H).

        input (B, I); hx: None for zeros. None where this is no such step, or where arguments do not
        fit, which the general way explains.
        """
        if (
            grad_is_on()
            or type(input) is not Tensor
            # Something but autograd looks at operations, or asks for where they run.
            or compiling()
            or functorch_is_on()
            or dispatch_modes()
            or forward_ad._current_level >= 0
            or autocast_is_on("cpu")
            or dispatch.turned_from("cpu")
        ):
            return None
        dtype, get = input.dtype, parameters.get
        found = [dtype, library.instruction_set]
        for name in self.names:
            v: Any = get(name)
            # Another layout, dtype or size may stand at the address that is known.
            known = v is not None and v.is_contiguous() and v.dtype is dtype
            found.append(known and (v.data_ptr(), v.numel()))
        if found != self.known and not self.learn(input, parameters, found):
            return None
        features, size, run, kernels, template = self.what
        try:
            B, width = input.shape
        except ValueError:
            return None
        if width != features or not (input.is_cpu and input.is_contiguous()):
            return None
        block, shape = copy_of(template), (B, size)
        block[AT_B], block[INPUT] = B, input.data_ptr()
        h, c = hx if self.two and type(hx) is tuple and len(hx) == 2 else (hx, None)
        if h is not None:
            if type(h) is not Tensor or not fits(h, shape, dtype):
                return None
            block[H_OLD] = h.data_ptr()
        if self.two and hx is not None:
            if type(c) is not Tensor or not fits(c, shape, dtype):
                return None
            block[C_OLD] = c.data_ptr()
        h = input.new_empty(shape) if h is None else empty_like(h)
        block[H_NEW] = h.data_ptr()
        if not self.two:
            run(kernels, block, threads())
            return h
        c = empty_like(h)
        block[C_NEW] = c.data_ptr()
        run(kernels, block, threads())
        return h, c

    def learn(self, input: Tensor, parameters: dict[str, Any], key: list[Any]) -> bool:
        """Remembers weights that the kernels can take; returns whether they can."""
        weights = ih, hh, b_ih, b_hh, *own = [parameters.get(name) for name in self.names]
        dtype = input.dtype
        given = [v for v in weights if v is not None]
        if ih is None or hh is None or (b_ih is None) != (b_hh is None) or None in own:
            return False
        # Of another type, such as FSDP's shards, the memory may not be here.
        if not all(type(v) in dispatch.ORDINARY and fits(v, v.shape, dtype) for v in given):
            return False
        if not input.numel() or library.why_no_kernels(self.cell, dtype) is not None:
            return False
        block = Block()
        block[H], block[I] = hh.shape[1], ih.shape[1]
        for at, v in zip((W_IH, W, B_IH, BIAS, P), weights, strict=False):
            block[at] = address(v)
        kernels = ctypes.c_void_p(library.kernels(self.cell, dtype, library.instruction_set))
        run = library.step_function()
        self.known, self.what = key, (ih.shape[1], hh.shape[1], run, kernels, bytes(block))
        return True


def fits(v: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return v.shape == shape and v.dtype == dtype and v.is_cpu and v.is_contiguous()
