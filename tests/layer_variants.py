"""The layers under test, found in the registry of cells, and what comparing two runs needs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import rnnkit
from rnnkit.cells import CELLS
from rnnkit.layers.options import NormOptions

KINDS = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
}
# What a layer runs on: dispatch's own choice, and the reference whatever it would choose.
ON = ("default", "reference")


# Whose norms are no variants of variants; rnn_relu is rnn_tanh but for one function.
NORMED = ("lstm", "gru", "rnn_tanh")


def minor(cell: str) -> bool:
    """Whether a cell is a variant of a variant, so that its tests repeat most of another's."""
    return CELLS[cell].norm is not None and cell.removesuffix("_norm") not in NORMED


def assert_gradients_add_up(prepare: Any) -> None:
    """As a loop of training adds them up, in place: no gradient may share another's memory.

    prepare: makes the same leaves each time, by name, and what runs forward and backward once.
    """
    found = []
    for times in (1, 2):
        leaves, step = prepare()
        for _ in range(times):
            step()
        found.append({name: v.grad for name, v in leaves.items()})
    once, twice = found
    for name, v in once.items():
        assert_close(twice[name], 2 * v, msg=name)


@dataclass(frozen=True)
class Variant:
    """A layer of one registered cell: the class's family, and the arguments that give that cell."""

    cell: str
    family: str
    options: dict[str, Any] = field(hash=False)

    @property
    def minor(self) -> bool:
        """Whether it is a variant of a variant: its tests repeat most of another's."""
        return minor(self.cell)

    def layer(self, *args: Any, dtype: Any = torch.double, **kwargs: Any) -> Any:
        return self.make(rnnkit, self.family, *args, dtype=dtype, **kwargs)

    def one(self, *args: Any, dtype: Any = torch.double, **kwargs: Any) -> Any:
        """The layer of a single step."""
        return self.make(rnnkit, self.family + "Cell", *args, dtype=dtype, **kwargs)

    def twin(self, *args: Any, suffix: str = "", **kwargs: Any) -> Any:
        """torch.nn's layer of the same name."""
        return self.make(torch.nn, self.family + suffix, *args, dtype=torch.double, **kwargs)

    def make(self, library: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        """A layer of the same weights at every call, larger than at first: gates shall bend."""
        torch.manual_seed(0)
        layer = getattr(library, name)(*args, **self.options, **kwargs)
        with torch.no_grad():
            for parameter in layer.parameters():
                if not parameter.is_meta:
                    parameter.copy_(torch.randn(parameter.shape, dtype=torch.double) * 0.6)
        return layer

    def sizes(self, hidden: int, projected: int = 0) -> list[int]:
        """The size of each of its states."""
        return [projected or hidden, hidden][: CELLS[self.cell].states]


def options_of(suffixes: list[str]) -> dict[str, Any]:
    """The arguments that add these suffixes to a cell's name."""
    chosen: dict[str, Any] = {}
    if "peephole" in suffixes:
        chosen["peephole"] = True
    if "before" in suffixes:
        chosen["reset_after"] = False
    if "norm" in suffixes:
        more = {"per_gate": "gates" in suffixes, "carry": "carry" in suffixes}
        chosen["layer_norm"] = NormOptions(**more) if any(more.values()) else True
    return chosen


def find_variants() -> list[Variant]:
    """One variant for every registered cell that a kind and its options' suffixes name."""
    found = []
    for cell in CELLS:
        kind = max((k for k in KINDS if cell.startswith(k)), key=len, default=None)
        if kind is not None:
            family, options = KINDS[kind]
            suffixes = cell.removeprefix(kind).split("_")[1:]
            chosen = options_of(suffixes)
            found.append(Variant(cell, family, options | chosen))
    return found


VARIANTS = find_variants()
PLAIN = [v for v in VARIANTS if v.cell in KINDS]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.cell)
# The same, where the variants of a variant are left to `make test-all`.
main_variant = pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=pytest.mark.slow) if v.minor else v for v in VARIANTS],
    ids=lambda v: v.cell,
)
plain_variant = pytest.mark.parametrize("variant", PLAIN, ids=lambda v: v.cell)
every_choice = pytest.mark.parametrize("on", ON)
# Dispatch has a choice of its own where torch.nn has the cell; the rest would run twice alike.
RUNS = [(v, on) for v in VARIANTS for on in ON if v in PLAIN or on == "reference"]
every_run = pytest.mark.parametrize(("variant", "on"), RUNS, ids=lambda v: getattr(v, "cell", v))
main_run = pytest.mark.parametrize(
    ("variant", "on"),
    [pytest.param(v, on, marks=pytest.mark.slow) if v.minor else (v, on) for v, on in RUNS],
    ids=lambda v: getattr(v, "cell", v),
)


def forced(on: str) -> Any:
    return nullcontext() if on == "default" else rnnkit.backend(on)


def randn(*shape: int, seed: int = 1, dtype: Any = torch.double) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.double).to(dtype)


def states(variant: Variant, *lead: int, hidden: int, projected: int = 0) -> dict[str, Any]:
    """Random initial states by name, h first."""
    sizes = variant.sizes(hidden, projected)
    return {f"s{k}": randn(*lead, size, seed=20 + k) for k, size in enumerate(sizes)}


def joined(given: dict[str, Any]) -> Any:
    """hx as the layers take it, from the states among the arguments; None if there are none."""
    found = tuple(value for name, value in given.items() if name in ("s0", "s1"))
    return None if not found else found[0] if len(found) == 1 else found


def leaves(value: Any) -> list[torch.Tensor]:
    """All floating-point tensors inside nested tuples, packed sequences included."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    return [] if value is None else [leaf for part in value for leaf in leaves(part)]


Run = tuple[list[torch.Tensor], dict[str, torch.Tensor]]


def run(module: Any, call: Any, tensors: dict[str, torch.Tensor], on: str = "reference") -> Run:
    """The results of call(module, **tensors), and the gradients of all parameters and tensors.

    Every result has its own random cotangent, the same for every module.
    """
    given = {k: v.detach().clone().requires_grad_() for k, v in tensors.items()}
    sources = dict(module.named_parameters()) | given
    with forced(on):
        results = leaves(call(module, **given))
        pairs = [(v, randn(*v.shape, seed=50 + k, dtype=v.dtype)) for k, v in enumerate(results)]
        differentiable = [pair for pair in pairs if pair[0].requires_grad]
        found = torch.autograd.grad(
            [v for v, _ in differentiable],
            list(sources.values()),
            [cotangent for _, cotangent in differentiable],
            allow_unused=True,
            materialize_grads=True,
        )
    return results, dict(zip(sources, found, strict=True))


def assert_same(ours: Run, theirs: Run, forward: float = 1e-12, backward: float = 1e-10) -> None:
    """The same results and gradients, each named if it differs."""
    assert len(ours[0]) == len(theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for k, (a, b) in enumerate(zip(ours[0], theirs[0], strict=True)):
        close(a, b, forward, f"result {k}")
    for name in theirs[1]:
        close(ours[1][name], theirs[1][name], backward, f"gradient of {name}")


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float, name: str) -> None:
    assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text: f"{name}: {text}")
