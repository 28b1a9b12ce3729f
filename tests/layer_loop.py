"""Recurrent layers by their equations: every layer, direction, row and step in a Python loop.

None of the package's code runs here: parameters are read by their names, options as they came.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from layer_variants import joined
from torch import Tensor

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}


@dataclass(frozen=True)
class Draws:
    """What one layer draws in one call: of each state, which elements keep their old value
    (T, B, D, H); d of the recurrent dropout (B, D, H); of each direction, weight_hh's mask."""

    keep: tuple[Tensor, ...] = ()
    d: Tensor | None = None
    weight: tuple[Tensor, ...] = ()


@dataclass
class Record:
    """What torch.rand and, in training, dropout returned, in the order of the calls."""

    rand: list[Tensor] = field(default_factory=list)
    dropout: list[Tensor] = field(default_factory=list)


@contextmanager
def recorded() -> Iterator[Record]:
    """Collects every draw made inside."""
    record, rand, dropout = Record(), torch.rand, torch.nn.functional.dropout

    def kept_rand(*args: Any, **kwargs: Any) -> Tensor:
        record.rand.append(rand(*args, **kwargs))
        return record.rand[-1]

    def kept_dropout(v: Tensor, p: float, training: bool = True) -> Tensor:
        out = dropout(v, p, training)
        if training:
            record.dropout.append((out / v).detach())
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", kept_rand)
        patch.setattr(torch.nn.functional, "dropout", kept_dropout)
        yield record


def rates(module: Any) -> list[float]:
    """The zoneout rate of every state up to the last that has one."""
    given = module.zoneout if isinstance(module.zoneout, tuple | list) else [module.zoneout]
    used = [k + 1 for k, rate in enumerate(given) if rate]
    return list(given[: max(used, default=0)])


def draws_of(module: Any, record: Record) -> list[Draws]:
    """What each layer drew in one call; there must be nothing else in the record."""
    rand, D, H = iter(record.rand), len(module.reverse), module.hidden_size
    weight = iter([v for v in record.dropout if v.dim() == 2])
    of_h = iter([v for v in record.dropout if v.dim() == 3])
    found = []
    for _ in range(module.num_layers):
        keep = [next(rand) < rate for rate in rates(module)]
        d = next(of_h) if module.recurrent_dropout else None
        found.append(
            Draws(
                tuple(v.reshape(*v.shape[:2], D, H) for v in keep),
                None if d is None else d.reshape(-1, D, H),
                tuple(next(weight) for _ in range(D)) if module.weight_dropout else (),
            )
        )
    assert not [*rand, *weight, *of_h]
    return found


class Direction:
    """One direction of one layer: its parameters, and its equations for one row at one step.

    Gates are (G, heads, K) for H = heads * K. `eps` has the eps of single norms, by name, where
    it shall not be the layer's.
    """

    def __init__(self, module: Any, suffix: str, mask: Tensor | None, eps: dict[str, float]):
        self.module, self.suffix, self.eps = module, suffix, eps
        self.norms, self.heads, self.G = module.layer_norm, module.num_heads, GATES[module.kind]
        hh = self.get("weight_hh")
        hh = hh if mask is None else hh * mask
        self.hh = hh.reshape(self.G, self.heads, -1, hh.shape[1])

    def get(self, name: str) -> Any:
        return getattr(self.module, name + self.suffix, None)

    def gates(self, v: Any, rows: int | None = None) -> Any:
        """(rows * H) as (rows, heads, K); zeros for None."""
        v = torch.zeros((rows or self.G) * self.heads) if v is None else v
        return v.reshape(rows or self.G, self.heads, -1)

    def norm(self, name: str, v: Tensor, gates: slice = slice(None)) -> Tensor:
        """Layer normalisation of v, which has these gates, if the layer has the norm."""
        gain, bias = self.get(name + "_weight"), self.get(name + "_bias")
        if gain is None:
            return v
        over = (2,) if self.norms.per_gate or v.shape[0] == 1 else (0, 2)
        deviation = v - v.mean(over, keepdim=True)
        variance = (deviation**2).mean(over, keepdim=True)
        normed = deviation / torch.sqrt(variance + self.eps.get(name, self.norms.eps))
        rows = gain.numel() // self.module.hidden_size
        return normed * self.gates(gain, rows)[gates] + self.gates(bias, rows)[gates]

    def product(self, h: Tensor, gates: slice = slice(None)) -> Tensor:
        """Every head's weights times its own part of h."""
        return torch.einsum("ghkj,hj->ghk", self.hh[gates], h.reshape(self.heads, -1))

    def step(self, x: Tensor, s: list[Tensor], d: Any) -> list[Tensor]:
        a, b_ih, b_hh = self.get("weight_ih") @ x, self.get("bias_ih"), self.get("bias_hh")
        a, b_ih, b_hh = (self.gates(v) for v in (a, b_ih, b_hh))
        equations = getattr(self, self.module.kind.partition("_")[0])
        return equations(a, b_ih, b_hh, s, d)

    def rnn(self, a: Tensor, b_ih: Any, b_hh: Any, s: list[Tensor], d: Any) -> list[Tensor]:
        total = self.norm("norm", a + b_ih + self.product(s[0] * d) + b_hh).flatten()
        return [torch.tanh(total) if self.module.kind == "rnn_tanh" else total.clamp(min=0)]

    def lstm(self, a: Tensor, b_ih: Any, b_hh: Any, s: list[Tensor], d: Any) -> list[Tensor]:
        h, c = s
        r = self.norm("norm_hh", self.product(h * d))
        i, f, g, o = (v.flatten() for v in self.norm("norm_ih", a) + r + b_ih + b_hh)
        ph = self.get("weight_ph")
        p_i, p_f, p_o = (0, 0, 0) if ph is None else ph.chunk(3)
        new = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
        seen = self.norm("norm_c", self.gates(new, 1)).flatten()
        new = seen if self.norms is not None and self.norms.carry else new
        h = torch.sigmoid(o + p_o * new) * torch.tanh(seen)
        hr = self.get("weight_hr")
        return [h if hr is None else hr @ h, new]

    def gru(self, a: Tensor, b_ih: Any, b_hh: Any, s: list[Tensor], d: Any) -> list[Tensor]:
        h, x = s[0], self.norm("norm_ih", a) + b_ih
        if self.module.reset_after:
            r = self.norm("norm_hh", self.product(h * d)) + b_hh
            reset, z = (torch.sigmoid(v.flatten()) for v in (x + r)[:2])
            n = torch.tanh(x[2].flatten() + reset * r[2].flatten())
        else:
            two, last = slice(0, 2), slice(2, 3)
            r = self.norm("norm_hh", self.product(h * d, two), two) + b_hh[two]
            reset, z = (torch.sigmoid(v.flatten()) for v in x[two] + r)
            r = self.norm("norm_hh", self.product(reset * h * d, last), last) + b_hh[last]
            n = torch.tanh((x[last] + r).flatten())
        return [(1 - z) * n + z * h]


def zone_out(old: list[Tensor], new: list[Tensor], shares: list[Any]) -> list[Tensor]:
    """The states of which a share of the old one stays; a mask picks, so nothing is rounded."""
    mixed = list(new)
    for k, share in enumerate(shares):
        if old[k].shape != old[-1].shape:
            # A projected h, which cannot be zoned out.
            assert not torch.as_tensor(share).any()
        elif isinstance(share, Tensor):
            mixed[k] = torch.where(share, old[k], new[k])
        else:
            mixed[k] = share * old[k] + (1 - share) * new[k]
    return mixed


def one_row(direction: Direction, x: Tensor, s: list[Tensor], way: Any, draws: Any) -> Any:
    """All states (T) of one row, zero outside its length, and the last ones."""
    (back, end, cuts), (keep, d) = way, draws
    zeros = [torch.zeros_like(v) for v in s]
    steps = [list(zeros) for _ in x]
    for t in reversed(range(end)) if back else range(end):
        if (t + 1 if back else t) in cuts:
            s = zeros
        module = direction.module
        shares = [v[t] for v in keep] if module.training else rates(module)
        s = zone_out(s, direction.step(x[t], s, d), shares)
        steps[t] = s
    return [torch.stack(v) for v in zip(*steps, strict=True)], s


def one_layer(module: Any, layer: int, x: Tensor, state: Any, ragged: Any, draws: Draws, eps: Any):
    """The states (T, B, D * size) of one layer at every step, and the last ones (D, B, size)."""
    (T, B, _), (lengths, resets), every, lasts = x.shape, ragged, [], []
    for k, back in enumerate(module.reverse):
        suffix = f"_l{layer}{'_reverse' if back else ''}"
        mask = draws.weight[k] if draws.weight else None
        direction, rows = Direction(module, suffix, mask, eps), []
        for b in range(B):
            end = T if lengths is None else int(lengths[b])
            cuts = [t for t in range(end) if resets is not None and resets[t, b]]
            own = [v[:, b, k] for v in draws.keep], 1 if draws.d is None else draws.d[b, k]
            s = [v[k, b] for v in state]
            rows.append(one_row(direction, x[:, b], s, (back, end, cuts), own))
        every.append([torch.stack(v, 1) for v in zip(*(r[0] for r in rows), strict=True)])
        lasts.append([torch.stack(v) for v in zip(*(r[1] for r in rows), strict=True)])
    return (
        [torch.cat(v, -1) for v in zip(*every, strict=True)],
        [torch.stack(v) for v in zip(*lasts, strict=True)],
    )


def zero_state(module: Any, x: Tensor) -> list[Tensor]:
    rows = module.num_layers * len(module.reverse)
    sizes = [module.proj_size or module.hidden_size, module.hidden_size]
    sizes = sizes[: 2 if module.kind == "lstm" else 1]
    return [x.new_zeros(rows, x.shape[1], size) for size in sizes]


def definition(
    lengths: Any = None, resets: Any = None, draws: Any = None, cells: bool = False, eps: Any = None
) -> Any:
    """A call for `run`: the layer's results by its equations, given what it drew."""

    def call(module: Any, x: Tensor, **given: Any) -> Any:
        D, output, finals = len(module.reverse), x, []
        state = [*given.values()] or zero_state(module, x)
        for layer in range(module.num_layers):
            own = [v[layer * D : (layer + 1) * D] for v in state]
            mine = draws[layer] if draws else Draws()
            every, last = one_layer(module, layer, output, own, (lengths, resets), mine, eps or {})
            output = every[0]
            finals.append(last)
        final = tuple(torch.cat(v) for v in zip(*finals, strict=True))
        return output, final, *(every[1:] if cells else ())

    return call


def one_step(draws: Any = ()) -> Any:
    """A call for `run` on the layer of a single step; `draws` are its masks (B, H)."""

    def call(module: Any, x: Tensor, **given: Any) -> Any:
        direction, rows = Direction(module, "", None, {}), []
        for b, row in enumerate(x):
            old = [v[b] for v in given.values()]
            shares = [v[b] for v in draws] if module.training else rates(module)
            rows.append(zone_out(old, direction.step(row, old, 1), shares))
        return tuple(torch.stack(v) for v in zip(*rows, strict=True))

    return call


def layer_call(lengths: Any = None, resets: Any = None, cells: bool = False) -> Any:
    """A call for `run`: the layer's own."""
    more = {"return_cell_states": True} if cells else {}

    def call(module: Any, x: Tensor, **given: Any) -> Any:
        return module(x, joined(given), lengths=lengths, resets=resets, **more)

    return call
