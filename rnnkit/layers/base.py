"""What recurrent layers and single cells share: options, parameters and checks."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..cells import CELLS, Cell, find
from ..functional import Weights

# The options that change a cell's equations: default, and the suffix of the cell's name otherwise.
OPTIONS = {
    "layer_norm": (False, "norm"),
    "peephole": (False, "peephole"),
    "reset_after": (True, "before"),
}


class Gated(nn.Module):
    """The weights of one or more directions of a recurrent cell, under torch.nn's names.

    A class sets `kind`; each option that is not at its default adds its suffix to it, and the
    result must be a registered cell. So a kind supports an option if, and only if, the cell of
    that name exists.
    """

    kind: str
    input_size: int
    hidden_size: int
    bias: bool
    proj_size: int = 0

    def set_nonlinearity(self, nonlinearity: str) -> None:
        """Sets the kind of an RNN."""
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.kind = f"rnn_{nonlinearity}"
        self.nonlinearity = nonlinearity

    def set_options(self, **options: bool) -> None:
        """Sets the options and, from the kind and their suffixes, the cell."""
        unknown = options.keys() - OPTIONS.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} got an unexpected argument {min(unknown)!r}")
        check_flags(**options)
        self.cell = self.kind
        for name, (default, suffix) in OPTIONS.items():
            value = options.get(name, default)
            setattr(self, name, value)
            if value is not default:
                self.cell += "_" + suffix
        if self.cell not in CELLS:
            chosen = ", ".join(self.shown_options())
            raise ValueError(f"{type(self).__name__} ({self.kind}) does not support {chosen}")

    def shown_options(self) -> list[str]:
        """The options that differ from their defaults, for the module's repr."""
        return [
            f"{name}={getattr(self, name)}"
            for name, (default, _) in OPTIONS.items()
            if getattr(self, name) is not default
        ]

    @property
    def equations(self) -> Cell:
        return find(self.cell)

    def add_direction(self, suffix: str, input_size: int, factory: dict[str, Any]) -> list[str]:
        """Registers the parameters of one direction; returns their names in torch.nn's order."""
        rows, width = self.equations.gates * self.hidden_size, self.proj_size or self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, input_size)}
        shapes["weight_hh"] = (rows, width)
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.hidden_size)
        for parameter in self.equations.parameters:
            shapes[parameter.name] = (parameter.rows * self.hidden_size,)
        for name, shape in shapes.items():
            self.register_parameter(name + suffix, nn.Parameter(torch.empty(shape, **factory)))
        return [name + suffix for name in shapes]

    def weights(self, suffix: str) -> Weights:
        """The parameters of one direction, read anew at every call: they may be parametrized."""

        def get(name: str) -> Tensor | None:
            return getattr(self, name + suffix, None)

        own = tuple(getattr(self, p.name + suffix) for p in self.equations.parameters)
        ih, hh = getattr(self, "weight_ih" + suffix), getattr(self, "weight_hh" + suffix)
        return Weights(ih, hh, get("bias_ih"), get("bias_hh"), get("weight_hr"), own)

    def reset_parameters(self) -> None:
        """Draws all parameters as torch.nn does, uniformly within 1 / sqrt(hidden_size)."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        fills = {p.name: p.fill for p in self.equations.parameters}
        for name, value in self.named_parameters():
            fill = next((f for own, f in fills.items() if name.startswith(own)), None)
            if fill is None:
                nn.init.uniform_(value, -bound, bound)
            else:
                nn.init.constant_(value, fill)


def check_sizes(**sizes: Any) -> None:
    """Raises unless each is a positive int (or numpy's)."""
    for name, value in sizes.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
        if value <= 0:
            raise ValueError(f"{name} must be greater than zero, got {value}")


def check_flags(**flags: Any) -> None:
    """Raises unless each is a bool."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def check_dropout(dropout: Any, num_layers: int) -> None:
    """Raises unless dropout is a probability; warns where it has no effect."""
    known = isinstance(dropout, numbers.Real) and not isinstance(dropout, bool)
    if not known or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an "
            f"element being zeroed, got {dropout!r}"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
            f"expects num_layers greater than 1, but got dropout={dropout} and "
            f"num_layers={num_layers}",
            stacklevel=4,
        )
