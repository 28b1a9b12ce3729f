"""What the providers of one benchmark compute, and how a layer becomes such a provider."""

from __future__ import annotations

import argparse
import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

import rnnkit
from rnnkit import dispatch

from .graph import Graphed
from .timing import Call, Tensors, error_bound, worst

__all__ = [
    "DTYPES",
    "IN_GRAPH",
    "MODES",
    "Built",
    "Case",
    "Choice",
    "LayerCall",
    "Problem",
    "build_case",
    "shape",
]

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# torch has no dtype to ask for the last bit of a TF32 number.
EPS = {name: torch.finfo(dtype).eps for name, dtype in DTYPES.items()} | {"tf32": 2.0**-10}
# What a provider is called whose calls are replayed.
IN_GRAPH = " in a CUDA graph"
MODES = ("forward+backward", "inference", "forward")


class Problem(Protocol):
    """What all providers compute: a named tuple, whose fields are those of a stored row.

    bound_sizes: the steps and the products of each, for `error_bound`.
    """

    @property
    def cell(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def bound_sizes(self) -> tuple[int, int]: ...
    def _asdict(self) -> dict[str, Any]: ...


def shape(names: str, count: str) -> Callable[[str], tuple[int, ...]]:
    """What reads sizes of these names, so many, off a command line."""

    def parsed(text: str) -> tuple[int, ...]:
        words = text.split(",")
        if len(words) != len(names.split(",")) or not all(map(is_size, words)):
            error = f"expected {names}, {count} positive numbers, got {text!r}"
            raise argparse.ArgumentTypeError(error)
        return tuple(map(int, words))

    return parsed


def is_size(word: str) -> bool:
    try:
        return int(word) > 0
    except ValueError:
        return False


class Choice(NamedTuple):
    """What is asked to be measured; None is all. shapes: (T, B, H) of recurrent layers."""

    cells: list[str] | None = None
    modes: list[str] | None = None
    dtypes: list[str] | None = None
    shapes: list[tuple[int, int, int]] | None = None

    def takes(self, problem: Problem) -> bool:
        pairs = zip(self[:3], (problem.cell, problem.mode, problem.dtype), strict=True)
        return all(chosen is None or value in chosen for chosen, value in pairs)


@dataclass
class Built:
    """The providers, the first of which is the baseline, the expected result in float64, and the
    providers that are absent and why. checks: as of `timing.measure`.
    """

    providers: dict[str, Call]
    expected: Tensors
    bound: float
    absent: dict[str, str]
    checks: dict[str, Call] = field(default_factory=dict)


class LayerCall:
    """Runs a layer in a mode and returns all that the mode computes.

    function: from the input to the output, or to the output and the state or states.
    parameters: those that it uses. context: what it runs in.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        parameters: dict[str, Tensor],
        input: Tensor,
        cotangent: Tensor,
        mode: str,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.function, self.input, self.cotangent = function, input, cotangent
        self.mode, self.context = mode, context
        self.leaves = {"dinput": input} | {f"d{name}": v for name, v in parameters.items()}

    def __call__(self) -> Tensors:
        with self.context(), torch.set_grad_enabled(self.mode != "inference"):
            found = named(self.function(self.input))
            if self.mode != "forward+backward":
                return found
            leaves = list(self.leaves.values())
            gradients = torch.autograd.grad(found["output"], leaves, self.cotangent)
            return found | dict(zip(self.leaves, gradients, strict=True))


def named(result: Any) -> Tensors:
    """A layer's results by name."""
    if isinstance(result, Tensor):
        return {"output": result}
    output, state = result
    states = state if isinstance(state, tuple) else (state,)
    return {"output": output} | dict(zip(("h_n", "c_n"), states, strict=False))


@dataclass
class Case:
    """A problem with its layers and data.

    ours: rnnkit's layer. twin: torch.nn's of the same state_dict; None where it has none.
    call: calls a layer, where that takes more than the input.
    on_host: what of the twin's call waits for the device; None if nothing does.
    """

    problem: Any
    ours: nn.Module
    twin: nn.Module | None
    input: Tensor
    call: Callable[[nn.Module, Tensor], Any] = lambda layer, input: layer(input)
    peers: Mapping[str, Callable[[Case], Call | str]] = field(default_factory=dict)
    on_host: str | None = None

    def __post_init__(self) -> None:
        if self.twin is not None:
            self.ours.load_state_dict(self.twin.state_dict())
        for layer in filter(None, (self.ours, self.twin)):
            layer.train(self.problem.mode != "inference")
        with torch.no_grad():
            output = named(self.call(self.ours, self.input))["output"]
        self.cotangent = torch.randn_like(output)
        self.input.requires_grad_()

    def of(self, layer: nn.Module, context: Any = nullcontext) -> LayerCall:
        """The call of a layer."""
        return self.calling(lambda input: self.call(layer, input), layer, context)

    def calling(
        self, function: Callable[[Tensor], Any], layer: nn.Module, context: Any = nullcontext
    ) -> LayerCall:
        """The call of a function that has a layer's parameters."""
        parameters: dict[str, Tensor] = dict(layer.named_parameters())
        data = self.input, self.cotangent, self.problem.mode
        return LayerCall(function, parameters, *data, context)

    def exact(self, change: float = 0.0) -> Tensors:
        """The result in float64, of parameters and input changed at random by such a share."""
        layer = copy.deepcopy(self.ours if self.twin is None else self.twin).double()
        input = self.input.detach().double()
        with torch.no_grad():
            for v in (input, *layer.parameters()) if change else ():
                v.mul_(1 + change * (2 * torch.rand_like(v) - 1))
        judge = nullcontext if self.twin is not None else on("reference")
        parameters: dict[str, Tensor] = dict(layer.named_parameters())
        data = input.requires_grad_(), self.cotangent.double(), self.problem.mode
        found = LayerCall(lambda v: self.call(layer, v), parameters, *data, judge)()
        return {name: v.detach() for name, v in found.items()}

    def bound(self, expected: Tensors) -> float:
        """The largest relative error of a right result: what rounding explains.

        Some problems, such as norms of small numbers or kinks, make any change larger than
        `error_bound` knows; then it is that of rounding all that they are given.
        """
        eps, (T, products) = EPS[self.problem.dtype], self.problem.bound_sizes
        changed = {name: v for name, v in self.exact(eps).items() if name in expected}
        growth = worst(changed, expected)[0] / eps
        if not math.isfinite(growth):
            raise ValueError(f"{self.problem} has no finite result to judge by")
        return max(error_bound(eps, T, products), growth * error_bound(eps, 1, products))


def on(backend: str) -> Callable[[], AbstractContextManager[None]]:
    """Runs on one backend, backward included."""
    return lambda: rnnkit.backend(backend)


def absence(backend: str, decisions: list[dispatch.Decision]) -> str | None:
    """Why a backend has nothing to be timed here; None if it has."""
    if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return "its interpreter's times tell nothing"
    if all(decision.backend == backend for decision in decisions):
        return "it is what rnnkit chooses"
    reasons = (dispatch.why_not(backend, decision.problem) for decision in decisions)
    return next(filter(None, reasons), None)


def candidates(case: Case) -> Iterator[tuple[str, Call | str]]:
    """Every provider, or why it is absent. The first that is there is the baseline."""
    ours = case.of(case.ours)
    missing = f"torch.nn has no {case.problem.cell}"
    yield "torch.nn", missing if case.twin is None else case.of(case.twin)
    with dispatch.recording() as decisions:
        ours()
    backends = [name for name in dispatch.BACKENDS if name != "torch"]
    # The reference is the baseline of what torch.nn lacks.
    for backend in sorted(backends, key=lambda name: name != "reference"):
        reason = absence(backend, decisions)
        yield f"rnnkit {backend}", reason or case.of(case.ours, on(backend))
    yield "rnnkit", ours
    for name, peer in case.peers.items():
        yield name, peer(case)
    if case.input.is_cuda:
        yield f"rnnkit{IN_GRAPH}", Graphed(ours)
        whole = missing if case.twin is None else Graphed(case.of(case.twin))
        yield f"torch.nn{IN_GRAPH}", case.on_host or whole


def build_case(case: Case) -> Built:
    """All that `timing.measure` needs of a case."""
    expected = case.exact()
    found = dict(candidates(case))
    absent = {name: v for name, v in found.items() if isinstance(v, str)}
    providers = {name: v for name, v in found.items() if not isinstance(v, str)}
    return Built(providers, expected, case.bound(expected), absent)


@contextmanager
def switches(dtype: str) -> Iterator[None]:
    """TF32 off for fp32 and on for tf32, in both of torch's switches: their defaults differ."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [v.allow_tf32 for v in backends]
    try:
        for v in backends:
            v.allow_tf32 = dtype == "tf32"
        yield
    finally:
        for v, value in zip(backends, before, strict=True):
            v.allow_tf32 = value
