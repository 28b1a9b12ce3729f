"""What recurrent layers and single cells share: options, parameters and checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..cells import Cell, find
from ..onnx import dropout
from ..projection import Weights
from . import options
from .options import OPTIONS, NormOptions


class Gated(nn.Module):
    """The weights of one or more directions of a recurrent cell, under torch.nn's names.

    A class sets `kind`; each option that changes the equations adds its suffix to it, and the
    result must be a registered cell. So a kind supports an option if, and only if, the cell of
    that name exists.
    """

    kind: str
    input_size: int
    hidden_size: int
    bias: bool
    proj_size: int = 0
    weight_dropout: float = 0.0

    def set_nonlinearity(self, nonlinearity: str) -> None:
        """Sets the kind of an RNN."""
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.kind = f"rnn_{nonlinearity}"
        self.nonlinearity = nonlinearity

    def set_options(
        self,
        layer_norm: bool | NormOptions = False,
        peephole: bool = False,
        reset_after: bool = True,
        zoneout: float | Sequence[float] = 0.0,
        num_heads: int = 1,
        forget_bias: float | None = None,
    ) -> None:
        """Sets the options of a layer and of a single step alike, and, from them, the cell."""
        options.check_flags(peephole=peephole, reset_after=reset_after)
        self.layer_norm = options.norm_options(layer_norm)
        self.peephole, self.reset_after = peephole, reset_after
        self.cell = options.cell_name(self.kind, peephole, reset_after, self.layer_norm)
        if not options.known(self.cell):
            chosen = ", ".join(self.shown(OPTIONS))
            raise ValueError(f"{type(self).__name__} ({self.kind}) does not support {chosen}")
        self.zoneout, self.num_heads, self.forget_bias = zoneout, num_heads, forget_bias
        self.rates = options.zoneout_rates(zoneout, self.equations, self.proj_size)
        options.check_heads(num_heads, self.hidden_size, self.proj_size)
        options.check_forget_bias(forget_bias, self.kind, self.bias)

    def shown(self, defaults: dict[str, Any]) -> list[str]:
        """The named attributes that differ from their defaults, for the module's repr."""
        shown = []
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                shown.append(f"{name}={True if value == NormOptions() else value}")
        return shown

    def shown_options(self) -> list[str]:
        """The options that differ from their defaults."""
        return self.shown(OPTIONS | {"zoneout": 0.0, "num_heads": 1, "forget_bias": None})

    @property
    def equations(self) -> Cell:
        return find(self.cell)

    def add_direction(self, suffix: str, input_size: int, factory: dict[str, Any]) -> list[str]:
        """Registers the parameters of one direction; returns their names in torch.nn's order."""
        cell, H = self.equations, self.hidden_size
        rows, width = cell.gates * H, self.proj_size or H // self.num_heads
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, input_size)}
        shapes["weight_hh"] = (rows, width)
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, H)
        shapes |= {parameter.name: (parameter.rows * H,) for parameter in cell.parameters}
        if cell.norm is not None and cell.norm.of_sum:
            shapes["norm_bias"] = (rows,)
        elif cell.norm is not None:
            shapes |= {name: (rows,) for name in ("norm_ih_weight", "norm_ih_bias", "norm_hh_bias")}
        if self.layer_norm is not None and not self.layer_norm.bias:
            shapes = {name: v for name, v in shapes.items() if not is_norm_bias(name)}
        self.given = tuple(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name + suffix, nn.Parameter(torch.empty(shape, **factory)))
        return [name + suffix for name in shapes]

    def weights(self, suffix: str) -> Weights:
        """The parameters of one direction, read anew at every call: they may be parametrized."""
        # Asking a module for what it lacks is slow.
        found = {name: getattr(self, name + suffix) for name in self.given}
        ih, hh, get = found["weight_ih"], found["weight_hh"], found.get
        if self.weight_dropout:
            hh = dropout(hh, self.weight_dropout, self.training)
        cell = self.equations
        # A norm without a bias lacks only norm_c_bias of these.
        own = [get(p.name) for p in cell.parameters]
        of_sum = cell.norm is not None and cell.norm.of_sum
        return Weights(
            ih,
            hh,
            get("bias_ih"),
            get("bias_hh"),
            get("weight_hr"),
            tuple([ih.new_zeros(self.hidden_size) if v is None else v for v in own]),
            get("norm_ih_weight"),
            get("norm_ih_bias"),
            get("norm_bias" if of_sum else "norm_hh_bias"),
        )

    def reset_parameters(self) -> None:
        """Draws all parameters as torch.nn does, uniformly within 1 / sqrt(hidden_size).

        Norms begin with gain 1 and bias 0; with `forget_bias`, the biases of the forget gate add
        up to it.
        """
        bound = 1.0 / math.sqrt(self.hidden_size)
        fills = {p.name: p.fill for p in self.equations.parameters} | NORM_FILLS
        for name, value in self.named_parameters():
            fill = next((f for own, f in fills.items() if name.startswith(own)), None)
            if fill is None:
                nn.init.uniform_(value, -bound, bound)
            else:
                nn.init.constant_(value, fill)
            if self.forget_bias is not None and name.startswith("bias_"):
                start = self.forget_bias if name.startswith("bias_ih") else 0.0
                fill_forget_gate(value, self.hidden_size, start)


# What a norm outside the cell's equations begins with.
NORM_FILLS = {"norm_ih_weight": 1.0, "norm_ih_bias": 0.0, "norm_hh_bias": 0.0, "norm_bias": 0.0}


@torch.no_grad()
def fill_forget_gate(bias: Tensor, H: int, value: float) -> None:
    """Sets the rows of the second gate of a bias (G * H)."""
    # Not through a slice: of a parameter in shards (FSDP) that would be a copy.
    forget = torch.full_like(bias[H : 2 * H], value)
    bias.copy_(torch.cat([bias[:H], forget, bias[2 * H :]]))


def is_norm_bias(name: str) -> bool:
    return name.startswith("norm_") and "bias" in name
