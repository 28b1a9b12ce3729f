"""Bad input to the scan gets an error that names the argument, what came and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from .sequence import Inputs

LETTERS = {
    "x": "T B N G H",
    "w": "N G*H H",
    "b": "N G*H",
    "s0": "S B N H",
    "p": "N P H",
    "m": "T B N E H",
    "d": "B N H",
    "lengths": "B N",
    "resets": "T B N",
}
FREE_DTYPE = ("m", "d", "lengths", "resets")


def check(inputs: Inputs) -> None:
    """Raises unless the arguments of a scan fit together."""
    x, cell = inputs.x, inputs.equations
    if x.dim() != 5:
        raise ValueError(f"x: expected (T, B, N, G, H), got {x.dim()} dimensions: {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point dtype, got {x.dtype}")
    T, B, N, G, H = x.shape
    if cell.gates != G:
        raise ValueError(f"x: cell {cell.name!r} has G = {cell.gates} gates, got {tuple(x.shape)}")
    sizes = {"T": T, "B": B, "N": N, "G": G, "H": H, "G*H": G * H, "E": 1}
    sizes |= {"S": cell.states, "P": cell.rows}
    if inputs.m is not None and inputs.m.dim() == 5:
        # A mask may be given for the first states only.
        sizes["E"] = min(max(inputs.m.shape[3], 1), cell.states)
    for name, letters in LETTERS.items():
        value = getattr(inputs, name)
        if value is not None:
            check_tensor(
                name, value, tuple(sizes[letter] for letter in letters.split()), letters, x
            )
    if cell.rows and inputs.p is None:
        raise ValueError(f"p: cell {cell.name!r} needs {cell.rows} rows of it, got None")
    if not inputs.reverse or N % len(inputs.reverse):
        raise ValueError(
            f"reverse: expected directions for equal runs of N = {N} groups, got {inputs.reverse}"
        )


def check_tensor(name: str, value: Tensor, shape: tuple[int, ...], letters: str, x: Tensor) -> None:
    if tuple(value.shape) != shape:
        expected = f"({', '.join(letters.split())}) = {shape}"
        raise ValueError(f"{name}: expected {expected}, got {tuple(value.shape)}")
    if value.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} (x's), got {value.device}")
    if name not in FREE_DTYPE and value.dtype != x.dtype:
        raise TypeError(f"{name}: expected dtype {x.dtype} (x's), got {value.dtype}")
    if name == "lengths" and (value.is_floating_point() or value.dtype == torch.bool):
        raise TypeError(f"lengths: expected an integer dtype, got {value.dtype}")
    if name == "resets" and value.dtype != torch.bool:
        raise TypeError(f"resets: expected dtype torch.bool, got {value.dtype}")
