"""What a recurrent cell is, and the registry of all cells.

A cell is the arithmetic of one time step on tuples of gates and states, and its derivative.
Everything else (sequences, directions, lengths, resets, dropout, layers) is written once, for any
cell. Each tensor below has shape (..., N, H): N groups of H units, with any dimensions before them.

    step(x, r, s, p) -> s'                       the next states; s'[0] is the output h'
    vjp(x, r, s, p, ds') -> dx, dr, ds, dp       its vector-Jacobian product

x: the input's part of each gate. s: the states; s[0] is h. p: the parameters of the step.
r: the recurrent part of each gate, h @ w.T + b; of a cell with a norm, LN(h @ w.T) * gain + b.
ds is what reaches s directly, not through r.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from .norm import EPS

Tensors = tuple[Tensor, ...]
# Those of a cell that `normalises` take eps as a keyword besides.
Step = Callable[..., Tensors]
Vjp = Callable[..., tuple[Tensors, Tensors, Tensors, Tensors]]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a cell beside its weights and biases: `rows` times H values.

    `fill` is its initial value; None draws it as torch.nn draws the weights.
    """

    name: str
    rows: int = 1
    fill: float | None = None


@dataclass(frozen=True)
class Inner:
    """The gated input of a cell's late gates, for cells with a second product inside the step.

        step(x, r, s, p) -> q        the late gates' recurrent part is q @ w_late.T + b_late
        vjp(x, r, s, p, dq) -> dx, dr, ds        over the early gates

    Here x and r hold the early gates only, the first `early` of the cell's.
    """

    early: int
    step: Callable[[Tensors, Tensors, Tensors, Tensors], Tensor]
    vjp: Callable[[Tensors, Tensors, Tensors, Tensors, Tensor], tuple[Tensors, Tensors, Tensors]]


@dataclass(frozen=True)
class Norm:
    """Layer normalisation between the recurrent product and the step (Ba et al. 2016).

    Args:
        of_sum: of x + r, which must be all that the step sees of them; else of r alone.
        per_gate: each gate over its H units; else all gates of one product together.
    """

    of_sum: bool = False
    per_gate: bool = False


@dataclass(frozen=True)
class Cell:
    """A recurrent cell: its equations, and what the scan needs to know of them.

    Args:
        name: its name in the registry.
        gates: how many gates x and r have.
        states: how many states it carries, h first.
        step, vjp: the equations, as above.
        parameters: all of them; with a norm, its gain comes first and is not a parameter of the
            step.
        additive: x and r enter only as x + r, so dr equals dx and both biases can be added to x.
        inner: the second product inside the step, if there is one.
        norm: of the recurrent product, before the step.
        normalises: the step itself has a norm.
        eps: of all norms.
        kernel: the name under which kernels know the step, if it is not the cell's.
    """

    name: str
    gates: int
    states: int
    step: Step
    vjp: Vjp
    parameters: tuple[Parameter, ...] = ()
    additive: bool = False
    inner: Inner | None = None
    norm: Norm | None = None
    normalises: bool = False
    eps: float = EPS
    kernel: str = ""

    @property
    def rows(self) -> int:
        """How many rows of H values the parameters have together."""
        return sum(parameter.rows for parameter in self.parameters)

    @property
    def gains(self) -> int:
        """How many of them are the norm's gain."""
        return 0 if self.norm is None else self.gates


CELLS: dict[str, Cell] = {}
_with_eps: dict[str, Cell] = {}


def register(cell: Cell) -> Cell:
    """Makes a cell known to the scan, the layers and the tests under its name."""
    if CELLS.get(cell.name, cell) != cell:
        raise ValueError(f"a different cell is already registered under the name {cell.name!r}")
    CELLS[cell.name] = cell
    return cell


def normed(cell: Cell, norm: Norm, suffix: str) -> Cell:
    """The cell with a norm before its step."""
    gain = Parameter("norm_weight" if norm.of_sum else "norm_hh_weight", cell.gates, fill=1.0)
    return replace(
        cell,
        name=f"{cell.name}_{suffix}",
        norm=norm,
        parameters=(gain, *cell.parameters),
        kernel=cell.kernel or cell.name,
    )


def find(name: str) -> Cell:
    """The cell of that name, where "NAME@EPS" has another eps in its norms; or an error."""
    if name in CELLS:
        return CELLS[name]
    base, _, eps = name.partition("@")
    if base in CELLS and eps:
        if name not in _with_eps:
            _with_eps[name] = with_eps(CELLS[base], eps)
        return _with_eps[name]
    raise ValueError(f"unknown cell {name!r}: expected one of {', '.join(sorted(CELLS))}")


def with_eps(cell: Cell, text: str) -> Cell:
    """The cell with another eps in its norms."""
    eps = float(text)
    changed: dict[str, Any] = {"name": f"{cell.name}@{text}", "eps": eps}
    if cell.normalises:
        changed |= {"step": partial(cell.step, eps=eps), "vjp": partial(cell.vjp, eps=eps)}
    return replace(cell, kernel=cell.kernel or cell.name, **changed)
