"""Which backend runs a problem, and why each other does not.

A backend says in words what it cannot do (`why_not`); what is faster is the order of BACKENDS and
the exceptions of `slower`. Nothing falls back silently: a forced backend runs or raises, and a CUDA
tensor that lands on the reference warns once.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .ops.sequence import Inputs

__all__ = ["BACKENDS", "Decision", "Problem", "backend", "choose", "explain", "recording"]

# In the order of preference: name and package, with a module for each operator.
BACKENDS = {
    "torch": "rnnkit.torch_kernels",
    "cuda": "rnnkit.cuda",
    "triton": "rnnkit.triton",
    "cpu": "rnnkit.cpu",
    "reference": "rnnkit.reference",
}


class Asked(Protocol):
    """What a problem of any operator tells dispatch; hashable, and str() describes it.

    operator: the operator's name, and that of its module in each backend.
    extras: what only a layer knows, None for a bare call of the operator.
    """

    @property
    def operator(self) -> str: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def extras(self) -> tuple[str, ...] | None: ...
    def __hash__(self) -> int: ...


class Problem(NamedTuple):
    """All that decides where a scan runs: sizes, dtype, device, and whether a gradient is asked.

    forward_mode: whether tangents may come with the inputs (torch.func.jvp, dual numbers).
    extras: what only a layer knows ("lengths", "resets", ...); for a bare scan they are None, and
    backends that run whole layers only say so.
    """

    cell: str
    T: int
    B: int
    N: int
    H: int
    dtype: torch.dtype
    device: torch.device
    backward: bool
    runs: int
    forward_mode: bool = False
    extras: tuple[str, ...] | None = None

    @property
    def operator(self) -> str:
        return "scan"

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        sizes = f"T={self.T} B={self.B} N={self.N} H={self.H}"
        return f"{self.cell} {sizes} {kind} on {self.device}"


class LayerProblem(NamedTuple):
    """The same of an operator that is parallel in time.

    sizes: what the operator's why_not asks for, by name.
    extras: what a layer's call has beside, None for a bare call of the operator.
    """

    operator: str
    sizes: tuple[tuple[str, int], ...]
    activation: str | None
    dtype: torch.dtype
    device: torch.device
    backward: bool = False
    forward_mode: bool = False
    extras: tuple[str, ...] | None = None

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        sizes = " ".join(f"{name}={value}" for name, value in self.sizes)
        named = "" if self.activation is None else f" {self.activation}"
        return f"{self.operator} {sizes}{named} {kind} on {self.device}"


class Backend(Protocol):
    """A backend's module for the scan; other operators' have their two functions likewise."""

    def scan(self, inputs: Inputs) -> Any: ...

    def scan_backward(self, *args: Any) -> Any: ...

    def why_not(self, problem: Problem) -> str | None: ...

    # Optional: note(problem) -> str | None, what `explain` adds about it; gradients(inputs, states,
    # kept, arriving), all of backward, in place of scan_backward; KEEPS, whether scan(inputs, keep)
    # can return what its products gave, for `gradients`; and WHOLE, how it runs a whole layer
    # (ops.layer.Whole).


@dataclass(frozen=True)
class Decision:
    """Which backend runs a problem, and the reasons of those that come before it."""

    problem: Any
    backend: str
    reasons: tuple[tuple[str, str], ...]


_forced: str | None = None  # plain, not thread-local: CUDA runs backward in other threads
_records: list[Decision] | None = None
_warned: set[str] = set()


@lru_cache
def load(name: str, operator: str = "scan") -> tuple[Any, str | None]:
    """A backend's module for an operator, or None and the reason why it cannot be imported."""
    try:
        return importlib.import_module(f"{BACKENDS[name]}.{operator}"), None
    except ModuleNotFoundError as error:
        if error.name == f"{BACKENDS[name]}.{operator}":
            return None, f"it has no kernels for {operator}"
        return None, f"{name} cannot be imported: {error}"
    except ImportError as error:
        return None, f"{name} cannot be imported: {error}"


def why_not(name: str, problem: Asked) -> str | None:
    """Why the backend of that name cannot run the problem; None if it can."""
    module, reason = load(name, problem.operator)
    return reason if module is None else module.why_not(problem)


def slower(name: str, problem: Asked) -> str | None:
    """Why a backend that could run a problem is not preferred for it, by a measured result."""
    on_cpu = problem.device.type == "cpu"
    if name == "torch" and (problem.operator, problem.dtype) == ("causal_conv1d", torch.float64):
        return "its sums depend on the length, and in float64 chunks are to equal the whole"
    if name == "torch" and not on_cpu and not torch_is_faster(problem):
        return "no stored result shows torch.nn's kernels faster on this device"
    if name == "cuda" and in_one_block(problem) and why_not("triton", problem) is None:
        return "Triton's kernels are faster at such an H, where one block holds all weights"
    if name == "triton" and on_cpu:
        return "on a CPU it runs in an interpreter, for tests that ask for it"
    if name == "torch" and isinstance(problem, Problem) and "cpu" in BACKENDS:
        return "rnnkit's own CPU kernels come first" if why_not("cpu", problem) is None else None
    return None


def torch_is_faster(problem: Asked) -> bool:
    """Whether torch's kernels take less of a GPU's time, as they do in bfloat16 on an H100: plain
    layer norms up to some N, and convolutions from 256 channels on, of which they take a third.
    In float32 norms took as long, and convolutions have not been measured.
    """
    if not isinstance(problem, LayerProblem) or problem.dtype.itemsize != 2:
        return False
    sizes = dict(problem.sizes)
    if problem.operator == "layer_norm":
        return sizes["N"] < 4096 and problem.activation is None and not problem.extras
    return sizes["C"] // sizes.get("groups", 1) >= 256


def in_one_block(problem: Asked) -> bool:
    """Whether Triton's kernels, of which a block holds all weights of a group, are the faster ones.

    By steps measured on an H100, in bfloat16 at H 64 and 128: forward they take two thirds of the
    time and less, backward more at 128. In float32 at H 64 they took ten times as long.
    """
    if not isinstance(problem, Problem):
        return False
    most = {2: 64 if problem.backward else 128, 8: 64}.get(problem.dtype.itemsize, 0)
    return most >= problem.H


def torch_before_reference(problem: Asked) -> bool:
    """Whether torch.nn's kernels run what no other backend but the reference can."""
    return problem.device.type != "cpu" and why_not("torch", problem) is None


@lru_cache(4096)
def decide(problem: Any, forced: str | None) -> Decision:
    """The first backend that can run the problem, or the forced one; or raises with all reasons."""
    # Of the others none is asked then: to answer may take minutes' compiling.
    if forced is not None and why_not(forced, problem) is None:
        return Decision(problem, forced, ())
    reasons: list[tuple[str, str]] = []
    for name in BACKENDS:
        checks = [why_not, slower] if forced is None else [why_not]
        if name == "cuda":
            checks.reverse()  # for the same reason
        reason = next(filter(None, (check(name, problem) for check in checks)), None)
        if reason is None and forced is None:
            if name == "reference" and torch_before_reference(problem):
                name = "torch"
            return Decision(problem, name, tuple(reasons))
        if reason is not None:
            reasons.append((name, reason))
    lines = "".join(f"\n  {name}: {reason}" for name, reason in reasons)
    raise RuntimeError(f"backend {forced!r} cannot run {problem}:{lines}")


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is on."""
    return forward_ad._current_level >= 0


def problem_of(inputs: Inputs, backward: bool = False) -> Problem:
    x, runs = inputs.x, len(inputs.reverse)
    T, B, N, _, H = x.shape
    dual = in_forward_mode()
    return Problem(inputs.cell, T, B, N, H, x.dtype, x.device, backward, runs, dual)


def choose(inputs: Inputs, backward: bool = False) -> Any:
    """The module that runs this scan."""
    return settle(problem_of(inputs, backward))


def keeps(inputs: Inputs) -> bool:
    """Whether the scan is to keep for backward what its products gave."""
    if tracing(inputs.x) or not recorded(*inputs[:5]):
        return False
    backend = load(decide(problem_of(inputs), _forced).backend)[0]
    return getattr(backend, "KEEPS", False)


def settle(problem: Asked) -> Any:
    """The module that runs this problem."""
    return load(decide_and_record(problem).backend, problem.operator)[0]


def decide_and_record(problem: Asked) -> Decision:
    decision = decide(problem, _forced)
    record(decision)
    return decision


def on_torch(problem: Asked, x: Tensor) -> bool:
    """Whether torch.nn's own kernel, which torch itself differentiates, runs a layer's problem.

    Asked of operators all of whose problems torch can run. A trace, whose sizes are symbols, gets
    the same answer, so that torch.compile can fuse what torch runs.
    """
    if tracing(x):
        chosen = _forced == "torch" or (_forced is None and slower("torch", problem) is None)
        return chosen or torch.onnx.is_in_onnx_export()  # ONNX has none of our operators
    return decide_and_record(problem).backend == "torch"


def tracing(x: Tensor) -> bool:
    """Whether x's operations are being recorded, not run; symbolic sizes are a trace too."""
    return torch.compiler.is_compiling() or symbolic(x)


def symbolic(x: Tensor) -> bool:
    return any([type(size) is not int for size in x.shape])


# What is no subclass, of which nobody knows what its operations do and where its memory is.
ORDINARY = (Tensor, torch.nn.Parameter)


def recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd records operations on them."""
    return torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors)


def plain(*tensors: Tensor) -> bool:
    """Whether only autograd looks at their operations: no trace, transform, mode or subclass."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or in_forward_mode()
    ):
        return False
    batched = torch._C._functorch.is_legacy_batchedtensor
    return all([type(v) in ORDINARY and not symbolic(v) and not batched(v) for v in tensors])


def record(decision: Decision) -> None:
    problem = decision.problem
    if _records is not None:
        # What a layer decided and recorded, its forward scan decides again.
        last = _records[-1].problem if _records else problem
        if last.extras is None or problem != last._replace(extras=None, backward=False):
            _records.append(decision)
    if decision.backend == "reference" and problem.device.type == "cuda" and _forced is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in decision.reasons)
        if reasons not in _warned:
            _warned.add(reasons)
            warnings.warn(f"{problem} runs on the slow reference: {reasons}", stacklevel=2)


def check_name(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")
    return name


@contextmanager
def forcing(name: str | None) -> Iterator[None]:
    """Forces a backend, or none."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def forced() -> str | None:
    """The backend that is forced now."""
    return _forced


def turned_from(name: str) -> bool:
    """Whether a shortcut to a backend would miss that another one, or a record, is asked for."""
    return _forced not in (None, name) or _records is not None


def backend(name: str) -> AbstractContextManager[None]:
    """Runs everything inside on the named backend, or raises with every backend's reasons.

    Names: "torch" (torch.nn's own kernels), "cuda", "triton", "cpu", "reference". The environment
    variable RNNKIT_BACKEND does the same for a whole process. Backward passes count by when they
    run.
    """
    return forcing(check_name(name))


@contextmanager
def recording() -> Iterator[list[Decision]]:
    """Collects the decision of every scan and every layer call made inside."""
    global _records
    before, _records = _records, []
    try:
        yield _records
    finally:
        _records = before


def explain(module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
    """Runs a module once and prints which backend ran each scan and why the others did not.

    Any module will do: every rnnkit layer inside it is reported. The call is made without
    gradients and with the random state put back.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.no_grad(), recording() as decisions:
        module(*args, **kwargs)
    for decision in decisions:
        print(f"{decision.problem}: {decision.backend}")
        for name in BACKENDS:
            reason, unknown = dict(decision.reasons).get(name), may_compile(name, decision)
            if reason is None:
                reason = UNKNOWN if unknown else why_not(name, decision.problem)
            if name != decision.backend:
                print(f"  not {name}: {reason or 'comes later in the order of preference'}")
            noted = getattr(load(name, decision.problem.operator)[0], "note", None)
            said = None if noted is None or unknown else noted(decision.problem)
            if said is not None:
                print(f"  {name}: {said}")


UNKNOWN = "another was chosen before it was asked, and to answer it may compile for minutes"


def may_compile(name: str, decision: Decision) -> bool:
    """Whether a backend, asked for more than was decided by, may compile what nothing needs."""
    problem = decision.problem
    scans = isinstance(problem, Problem) and problem.device.type == "cuda"
    return scans and name == "cuda" != decision.backend


def plain_arithmetic(device: torch.device) -> AbstractContextManager[Any]:
    """An operator computes in its arguments' dtypes: autocast must not reach inside."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for a device; of some, such as meta, it knows nothing."""
    kind = device.type
    known = kind in COMMON or (not torch.compiler.is_compiling() and autocast_is_known(kind))
    return known and torch.is_autocast_enabled(kind)


# Of which autocast knows: torch 2.11's compiler cannot trace the question.
COMMON = ("cpu", "cuda")
autocast_is_known = lru_cache(torch.amp.is_autocast_available)


if "RNNKIT_BACKEND" in os.environ:
    _forced = check_name(os.environ["RNNKIT_BACKEND"])
