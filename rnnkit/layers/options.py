"""The options of recurrent layers and cells that torch.nn lacks, and what they may be."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..cells import CELLS, Cell
from ..cells.norm import EPS


@dataclass(frozen=True)
class NormOptions:
    """What `layer_norm=` takes beside True, which is the default of all (Ba et al. 2016).

    Args:
        per_gate: normalise each gate over its H units, not all gates together (LSTM, GRU).
        carry: carry the normalised c to the next step, as it is seen by the output (LSTM).
        bias: whether every norm learns a bias beside its gain.
        eps: added to every variance.
    """

    per_gate: bool = False
    carry: bool = False
    bias: bool = True
    eps: float = EPS

    def __post_init__(self) -> None:
        check_flags(per_gate=self.per_gate, carry=self.carry, bias=self.bias)
        check_number("eps", self.eps, "a number greater than 0", lambda v: 0 < v < math.inf)

    def __repr__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self)]
        defaults = [f"{f.name}={f.default}" for f in fields(self)]
        return f"NormOptions({', '.join(v for v in changed if v not in defaults)})"

    @property
    def suffix(self) -> str:
        """What it adds to a cell's name."""
        return "norm" + "_gates" * self.per_gate + "_carry" * self.carry


# The options that change a cell's equations, with their defaults.
OPTIONS = {"peephole": False, "reset_after": True, "layer_norm": None}


def cell_name(kind: str, peephole: bool, reset_after: bool, norm: NormOptions | None) -> str:
    """The name of a kind's cell with these options; it need not exist."""
    suffixes = ["peephole"] * peephole + ["before"] * (not reset_after)
    name = "_".join([kind, *suffixes, *([norm.suffix] if norm else [])])
    return name if norm is None or norm.eps == EPS else f"{name}@{float(norm.eps)!r}"


def known(name: str) -> bool:
    return name.partition("@")[0] in CELLS


def norm_options(layer_norm: Any) -> NormOptions | None:
    """The options that a layer's argument `layer_norm` means; None for no norm."""
    if isinstance(layer_norm, NormOptions):
        return layer_norm
    if not isinstance(layer_norm, bool):
        kind = type(layer_norm).__name__
        raise TypeError(f"layer_norm should be of type bool or NormOptions, got: {kind}")
    return NormOptions() if layer_norm else None


def zoneout_rates(zoneout: Any, cell: Cell, proj_size: int) -> tuple[float, ...]:
    """The rate of every state, as far as any is not 0."""
    several = isinstance(zoneout, Sequence) and not isinstance(zoneout, str)
    rates = tuple(zoneout) if several else (zoneout,)
    for rate in rates or (zoneout,):
        check_rate("zoneout", rate)
    if len(rates) > cell.states:
        raise ValueError(
            f"zoneout: expected at most {cell.states} rates, one for each state, got {zoneout!r}"
        )
    if proj_size and rates and rates[0]:
        raise ValueError(
            f"zoneout of h does not go with proj_size, got zoneout={zoneout!r} and "
            f"proj_size={proj_size}; zoneout=(0, rate) acts on c alone"
        )
    while rates and not rates[-1]:
        rates = rates[:-1]
    return tuple(map(float, rates))


def check_heads(num_heads: int, hidden_size: int, proj_size: int) -> None:
    """Raises unless a state of that size divides into heads."""
    check_sizes(num_heads=num_heads)
    if hidden_size % num_heads:
        raise ValueError(
            f"num_heads must divide hidden_size, got num_heads={num_heads} and "
            f"hidden_size={hidden_size}"
        )
    if num_heads > 1 and proj_size:
        raise ValueError(
            "num_heads does not go with proj_size, whose projection would mix the heads, got "
            f"num_heads={num_heads} and proj_size={proj_size}"
        )


def check_forget_bias(forget_bias: Any, kind: str, bias: bool) -> None:
    """Raises unless there is a forget gate's bias to set."""
    if forget_bias is None:
        return
    check_number("forget_bias", forget_bias, "a finite number or None", math.isfinite)
    if kind != "lstm" or not bias:
        raise ValueError(
            f"forget_bias needs an LSTM with bias=True, got kind {kind!r} and bias={bias}"
        )


def check_number(name: str, value: Any, expected: str, fits: Any) -> None:
    """Raises unless the value is a real number that fits."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} should be {expected}, got: {value!r}")
    if not fits(value):
        raise ValueError(f"{name} should be {expected}, got {value!r}")


def check_rate(name: str, value: Any) -> None:
    """Raises unless the value is a probability below 1."""
    check_number(name, value, "a number in range [0, 1)", lambda v: 0 <= v < 1)


def check_sizes(**sizes: Any) -> None:
    """Raises unless each is a positive int (or numpy's)."""
    for name, value in sizes.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
        if value <= 0:
            raise ValueError(f"{name} must be greater than zero, got {value}")


def check_save_memory(steps: Any) -> None:
    """Raises unless it is a number of steps, or 0 for none."""
    if not isinstance(steps, numbers.Integral) or isinstance(steps, bool):
        raise TypeError(f"save_memory should be of type int, got: {type(steps).__name__}")
    if steps < 0:
        raise ValueError(
            f"save_memory should be a positive number of steps, or 0 to save all, got {steps}"
        )


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
