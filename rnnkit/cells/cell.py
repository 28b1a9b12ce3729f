"""What a recurrent cell is, and the registry of all cells.

A cell is the arithmetic of one time step on tuples of gates and states, and its derivative.
Everything else (sequences, directions, lengths, resets, dropout, layers) is written once, for any
cell. Each tensor below has shape (..., N, H): N groups of H units, with any dimensions before them.

    step(x, r, s, p) -> s'                       the next states; s'[0] is the output h'
    vjp(x, r, s, p, ds') -> dx, dr, ds, dp       its vector-Jacobian product

x: the input's part of each gate, followed by the masks of the step (which have no gradient).
r: the recurrent part of each gate, h @ w.T + b. s: the states; s[0] is h.
p: the cell's own parameters. ds is what reaches s directly, not through r.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Tensors = tuple[Tensor, ...]
Step = Callable[[Tensors, Tensors, Tensors, Tensors], Tensors]
Vjp = Callable[
    [Tensors, Tensors, Tensors, Tensors, Tensors], tuple[Tensors, Tensors, Tensors, Tensors]
]


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
class Cell:
    """A recurrent cell: its equations, and the counts the scan needs to know.

    additive: x and r enter only as x + r, so dr equals dx and both biases can be added to x.
    """

    name: str
    gates: int
    states: int
    step: Step
    vjp: Vjp
    parameters: tuple[Parameter, ...] = ()
    masks: int = 0
    additive: bool = False
    inner: Inner | None = None

    @property
    def rows(self) -> int:
        """How many rows of H values the cell's own parameters have together."""
        return sum(parameter.rows for parameter in self.parameters)


CELLS: dict[str, Cell] = {}


def register(cell: Cell) -> Cell:
    """Makes a cell known to the scan, the layers and the tests under its name."""
    if CELLS.get(cell.name, cell) != cell:
        raise ValueError(f"a different cell is already registered under the name {cell.name!r}")
    CELLS[cell.name] = cell
    return cell


def find(name: str) -> Cell:
    """The cell of that name, or an error that lists the known ones."""
    if name not in CELLS:
        raise ValueError(f"unknown cell {name!r}: expected one of {', '.join(sorted(CELLS))}")
    return CELLS[name]
