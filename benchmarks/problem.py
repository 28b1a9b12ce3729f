"""What the benchmark of recurrent layers compares: torch.nn's layer and ours, of equal weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import rnnkit
from rnnkit import dispatch, functional

from .timing import Call, Tensors, error_bound

__all__ = ["CELLS", "DTYPES", "MODES", "Problem", "build", "switches"]

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# torch has no dtype to ask for the last bit of a TF32 number.
EPS = {name: torch.finfo(dtype).eps for name, dtype in DTYPES.items()} | {"tf32": 2.0**-10}
CELLS = ("LSTM", "GRU", "RNN")
MODES = ("forward+backward", "inference", "forward")
BASELINE = "torch.nn"


class Problem(NamedTuple):
    """What all providers compute."""

    cell: str
    mode: str
    dtype: str
    T: int
    B: int
    H: int

    def __str__(self) -> str:
        return f"{self.cell} {self.mode} {self.dtype} T={self.T} B={self.B} H={self.H}"

    @property
    def bound(self) -> float:
        return error_bound(EPS[self.dtype], self.T, self.H)


class Built(NamedTuple):
    """The providers, the expected result in float64, and the providers that are absent and why."""

    providers: dict[str, Call]
    expected: Tensors
    absent: dict[str, str]


def call_of(layer: nn.Module, input: Tensor, cotangent: Tensor, mode: str) -> Call:
    """A function that runs the layer in a mode and returns all that the mode computes."""
    layer.train(mode != "inference")
    leaves = {"dinput": input} | {f"d{name}": v for name, v in layer.named_parameters()}

    def forward() -> Tensors:
        output, state = layer(input)
        return {"output": output} | dict(
            zip(("h_n", "c_n"), state if isinstance(state, tuple) else (state,), strict=False)
        )

    def inference() -> Tensors:
        with torch.no_grad():
            return forward()

    def both() -> Tensors:
        found = forward()
        gradients = torch.autograd.grad(found["output"], list(leaves.values()), cotangent)
        return found | dict(zip(leaves, gradients, strict=True))

    return {"inference": inference, "forward": forward, "forward+backward": both}[mode]


def under(backend: str, call: Call) -> Call:
    """The call, backward included, on one backend."""

    def forced() -> Tensors:
        with rnnkit.backend(backend):
            return call()

    return forced


def absence(backend: str, layer: Any, input: Tensor) -> str | None:
    """Why a backend has nothing to be timed here; None if it has."""
    if backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return "its interpreter's times tell nothing"
    weights = [layer.weights("_l0")]
    problem = functional.layer_problem(input, None, weights, layer.cell, (False,), ())
    return dispatch.why_not(backend, problem)


def build(problem: Problem, device: torch.device) -> Built:
    torch.manual_seed(0)
    T, B, H = problem.T, problem.B, problem.H
    made: dict[str, Any] = {"dtype": DTYPES[problem.dtype], "device": device}
    peer, ours = (getattr(kit, problem.cell)(H, H, **made) for kit in (nn, rnnkit))
    ours.load_state_dict(peer.state_dict())
    input = torch.randn(T, B, H, **made).requires_grad_()
    cotangent = torch.randn(T, B, H, **made)

    exact = getattr(nn, problem.cell)(H, H, dtype=torch.float64, device=device)
    exact.load_state_dict(peer.state_dict())
    double = input.detach().double().requires_grad_()
    expected = call_of(exact, double, cotangent.double(), problem.mode)()

    call = call_of(ours, input, cotangent, problem.mode)
    providers = {BASELINE: call_of(peer, input, cotangent, problem.mode), "rnnkit": call}
    absent: dict[str, str] = {}
    # The backend "torch" is the baseline's own kernels: rnnkit's default row shows what it adds.
    for backend in [name for name in dispatch.BACKENDS if name != "torch"]:
        reason = absence(backend, ours, input)
        if reason is None:
            providers[f"rnnkit {backend}"] = under(backend, call)
        else:
            absent[f"rnnkit {backend}"] = reason
    return Built(providers, {name: v.detach() for name, v in expected.items()}, absent)


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
