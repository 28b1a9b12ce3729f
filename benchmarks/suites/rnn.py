"""Recurrent layers of every registered cell, the input's projection included, I = H."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnkit
from rnnkit.cells import CELLS, find
from rnnkit.functional import QUIET
from rnnkit.projection import prepare, project, with_groups
from rnnkit.reference.scan import scan

from ..peers import flashrnn, haste
from ..problem import MODES, Built, Case, Choice, build_case
from ..timing import Call, Plan
from . import dtypes, made

# torch.nn's layers, by the cell that they have.
TWINS: dict[str, Callable[..., nn.Module]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": partial(nn.RNN, nonlinearity="relu"),
}
# A layer's arguments; with lengths, each row has its own, uniform in [T / 4, T].
FORMS: dict[str, dict[str, Any]] = {
    "": {},
    "lengths": {},
    "2 layers, bidirectional": {"num_layers": 2, "bidirectional": True},
}
# Parameters that are a recurrent norm's gain.
GAINS = ("norm_hh_weight", "norm_weight")
# T, B, H, the most telling first. The first is also where the other two dimensions stay while a
# figure shows one.
SHAPES = {
    "cpu": [
        (50, 32, 64),
        (50, 32, 20),
        (50, 32, 128),
        (50, 32, 256),
        (50, 1, 64),
        (50, 8, 64),
        (50, 128, 64),
        (10, 32, 64),
        (200, 32, 64),
        (100, 32, 128),
        (100, 64, 256),
    ],
    "cuda": [
        (256, 64, 256),
        (256, 64, 64),
        (256, 16, 128),
        (256, 64, 512),
        (256, 64, 20),
        (1024, 16, 768),
        (256, 256, 512),
        (256, 64, 1024),
        (50, 64, 256),
        (1024, 64, 256),
        (256, 8, 256),
    ],
}
# Of a variant of a cell, and of a form: the first shapes.
FEW = 2
# Its compiler takes seconds a shape.
COMPILED = ((50, 32, 64), (50, 64, 256))


class Problem(NamedTuple):
    """A layer of one cell. form: one of FORMS."""

    cell: str
    mode: str
    dtype: str
    T: int
    B: int
    H: int
    form: str = ""

    @property
    def bound_sizes(self) -> tuple[int, int]:
        return self.T, self.H


def problems(device: str, choice: Choice) -> Iterator[tuple[int, Problem]]:
    """Layers of every cell, at more shapes where torch.nn has the cell."""
    shapes = choice.shapes or SHAPES[device]
    for (late, dtype), (rank, mode), (place, shape), cell in product(
        dtypes(device, choice), enumerate(MODES), enumerate(shapes), CELLS
    ):
        common = cell in TWINS and cell != "rnn_relu"  # which takes what rnn_tanh does
        if mode == "forward" and not (common and place < FEW):
            continue  # between the other two, of which it tells little more
        if common or place < FEW:
            later = 0 if choice.shapes else min(place // 2, 2)
            yield late + 2 * rank + later + (not common), Problem(cell, mode, dtype, *shape)
    for (late, dtype), form, cell in product(dtypes(device, choice), list(FORMS)[1:], TWINS):
        for shape in [] if choice.shapes else shapes[:FEW]:
            yield late + 1, Problem(cell, MODES[0], dtype, *shape, form)


def plan(device: str) -> Plan:
    """A sample on a GPU begins with an idle device; it is long enough for that not to matter."""
    return Plan(sample=5e-3, turn=0.02) if device == "cuda" else Plan()


def layer_of(cell: str) -> Callable[..., nn.Module]:
    """rnnkit's layer of any registered cell."""
    return type(cell, (rnnkit.Recurrent,), {"kind": cell})


def build(problem: Problem, device: torch.device) -> Built:
    torch.manual_seed(0)
    T, B, H = problem.T, problem.B, problem.H
    options = made(problem, device) | FORMS[problem.form]
    twin = TWINS[problem.cell](H, H, **options) if problem.cell in TWINS else None
    ours = layer_of(problem.cell)(H, H, **options)
    tame(ours)
    input = torch.randn(T, B, H, **made(problem, device))
    peers = {"torch.compile": compiled, "flashrnn": flashrnn, "haste": haste}
    if problem.form != "lengths":
        return build_case(Case(problem, ours, twin, input, peers=peers))
    lengths = torch.randint(max(T // 4, 1), T + 1, (B,))
    lengths[0] = T
    call = partial(with_lengths, lengths, lengths.to(device))
    return build_case(
        Case(problem, ours, twin, input, call, peers, "it packs by lengths on the host")
    )


def tame(layer: nn.Module) -> None:
    """Makes the gain of recurrent norms small, as trained ones are (Cooijmans et al. 2016): with 1,
    they make any rounding larger at every step, until no result can be judged.
    """
    for name, v in layer.named_parameters():
        if name.startswith(GAINS):
            nn.init.constant_(v, 0.1)


def with_lengths(lengths: Tensor, near: Tensor, layer: nn.Module, input: Tensor) -> Any:
    """A call with lengths, for which torch.nn packs and pads; near: they, on the input's device."""
    if isinstance(layer, rnnkit.Recurrent):
        return layer(input, lengths=near)
    output, state = layer(pack_padded_sequence(input, lengths, enforce_sorted=False))
    return pad_packed_sequence(output, total_length=len(input))[0], state


def compiled(case: Case) -> Call | str:
    """The reference by torch.compile: one step of it, since all T would take it minutes."""
    problem = case.problem
    if (problem.mode, problem.form) != (MODES[0], "") or problem[3:6] not in COMPILED:
        return f"only {MODES[0]} of one layer with T, B, H in {COMPILED} is compiled"
    if not torch._dynamo.is_dynamo_supported():
        return "torch.compile does not support this platform"
    torch._dynamo.reset()
    layer: Any = case.ours
    cell, weights = find(problem.cell), [layer.weights("_l0")]
    step = torch.compile(scan, dynamic=False)

    def loop(input: Tensor) -> Any:
        x, b = project(input, weights, cell)
        found, _ = prepare(x, b, None, weights, cell, (False,), None, None, QUIET)
        inputs, outputs = with_groups(found), []
        s = x.new_zeros(cell.states, *x.shape[1:3], x.shape[-1])
        for x_t in x.split(1):
            output, _, s = step(inputs._replace(x=x_t, s0=s))
            outputs.append(output)
        return torch.cat(outputs).flatten(2), tuple(s.transpose(1, 2).unbind(0))

    return case.calling(loop, case.ours)
