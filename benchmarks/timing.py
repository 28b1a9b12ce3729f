"""Times providers of one result against each other, each only after it has shown the result right.

Providers take turns, over several rounds, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Plan", "Result", "Tensors", "error_bound", "measure", "on_cpu", "on_cuda", "worst"]

Tensors = dict[str, Tensor]
# What computes a result; one in another process has time(calls), the seconds that they take there.
Call = Callable[[], Tensors]
# Seconds that a function takes for a number of calls, one after the other.
Timer = Callable[[Callable[[], object], int], float]

WARM_CALLS = 3
MOST_CALLS = 1 << 16
# A call that takes so many turns is one.
LONG_TURNS = 4
# Who is so many times slower than the baseline in each of so many rounds takes part in no more:
# nobody needs to know exactly how slow.
SLOW, SLOW_ROUNDS = 16, 2


class Plan(NamedTuple):
    """How long to measure: rounds over all providers; seconds of a sample and of a turn."""

    rounds: int = 7
    sample: float = 1e-3
    turn: float = 0.05


@dataclass
class Result:
    """What one provider showed: a failure, or its times.

    first_call_s: seconds of the first call, compilation included.
    error: largest error of any tensor, relative to that tensor's largest value. where: its name.
    rounds: for each round, the seconds per call of its samples.
    ratios: for each round, its median time over the baseline's; empty without a baseline.
    """

    provider: str
    first_call_s: float | None = None
    error: float | None = None
    where: str | None = None
    failure: str | None = None
    rounds: list[list[float]] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def percentiles(self) -> tuple[float, float, float]:
        """p20, p50 and p80 of the seconds per call, over all samples of all rounds."""
        samples = [seconds for samples in self.rounds for seconds in samples]
        tenths = statistics.quantiles(samples, n=10, method="inclusive")
        return tenths[1], tenths[4], tenths[7]

    @property
    def ratio(self) -> float | None:
        """The median over the rounds of the time over the baseline's: below one is faster."""
        return statistics.median(self.ratios) if self.ratios else None


def on_cpu(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def on_cuda(call: Callable[[], object], calls: int, head_start: int = 0) -> float:
    """By device events; the device is idle before the first, so that all host time counts.

    head_start: cycles for which the device is busy then. No host time counts if it has launched
    all calls by their end.
    """
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if head_start:
        torch.cuda._sleep(head_start)
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def error_bound(eps: float, T: int, H: int) -> float:
    """The largest relative error that rounding explains.

    Every step rounds its values to eps and sums H products in float32, whose errors add up like a
    random walk; so do the errors of the T steps. A matrix product of the judge's own size, or a
    sum over time kept in the narrow dtype, as some kernels have, stays within it too.
    """
    return math.sqrt(T) * (eps + math.sqrt(H) * torch.finfo(torch.float32).eps)


def worst(found: Tensors, expected: Tensors) -> tuple[float, str]:
    """The largest error of any tensor, relative to the tensor's largest value, and its name.

    Infinite if a tensor is missing or has another shape; NaN counts as infinite.
    """
    errors = {name: math.inf for name in found.keys() ^ expected.keys()}
    for name in found.keys() & expected.keys():
        got, want = found[name].detach(), expected[name].detach()
        if got.shape != want.shape:
            errors[name] = math.inf
            continue
        scale = float(want.abs().max()) or 1.0
        error = float((got.double() - want.double()).abs().max()) / scale
        errors[name] = math.inf if math.isnan(error) else error
    where = max(sorted(errors), key=errors.__getitem__)
    return errors[where], where


def judge(name: str, call: Call, expected: Tensors, bound: float, timer: Timer) -> Result:
    """Calls a provider for the first time: its result is right, or it has failed."""
    found: list[Tensors] = []
    try:
        seconds = timer(lambda: found.append(call()), 1)
        error, where = worst(found[0], expected)
    except Exception as raised:  # whatever a provider raises is its result, not the benchmark's end
        first = (str(raised).splitlines() or [""])[0]
        return Result(name, failure=f"{type(raised).__name__}: {first}")
    result = Result(name, seconds, error, where)
    if error > bound:
        result.failure = f"error {error:.1e} of {where} is above {bound:.1e}"
    return result


def seconds_of(call: Call, calls: int, timer: Timer) -> float:
    """The seconds of some calls, by the timer or by the process in which they run."""
    elsewhere = getattr(call, "time", None)
    return timer(call, calls) if elsewhere is None else float(elsewhere(calls))


class Turn(NamedTuple):
    """One provider's turn: samples, each of some calls. warm: whether a call warms the caches again
    before them, as a long call does not need.
    """

    call: Call
    calls: int
    samples: int
    warm: bool

    def take(self, timer: Timer) -> list[float]:
        """The seconds per call of each sample."""
        if self.warm:
            seconds_of(self.call, 1, timer)
        samples = range(self.samples)
        return [seconds_of(self.call, self.calls, timer) / self.calls for _ in samples]


def prepare(call: Call, timer: Timer, plan: Plan) -> Turn:
    """Warms up and finds how many calls make a sample, and how many samples make a turn."""
    for _ in range(WARM_CALLS):
        if seconds_of(call, 1, timer) > LONG_TURNS * plan.turn:
            return Turn(call, 1, 1, False)
    calls = 1
    while (seconds := seconds_of(call, calls, timer)) < plan.sample and calls < MOST_CALLS:
        calls *= 2
    return Turn(call, calls, max(1, int(plan.turn / max(seconds, plan.sample))), True)


def ratios(result: Result, baseline: Result) -> list[float]:
    """Of each round that both took part in; none of a provider, or a baseline, that failed."""
    both = zip(result.rounds, baseline.rounds, strict=False)
    return [statistics.median(own) / statistics.median(base) for own, base in both]


def measure(
    providers: dict[str, Call],
    expected: Tensors,
    bound: float,
    timer: Timer = on_cpu,
    plan: Plan | None = None,
    checks: dict[str, Call] | None = None,
) -> list[Result]:
    """Judges all providers and times those that are right; the first is the baseline.

    Args:
        providers: by name, a function that computes the result.
        expected: the result in float64.
        bound: the largest relative error of a right result.
        timer: how calls are timed, for the device they run on.
        plan: how long to measure.
        checks: what is judged in place of a provider whose own calls return nothing to judge.
    """
    plan, judged = plan or Plan(), providers | (checks or {})
    results = {name: judge(name, call, expected, bound, timer) for name, call in judged.items()}
    right = {name: call for name, call in providers.items() if results[name].failure is None}
    turns = {name: prepare(call, timer, plan) for name, call in right.items()}
    baseline = results[next(iter(providers))]
    for k in range(plan.rounds):
        for name, turn in turns.items():
            far = min(ratios(results[name], baseline), default=0) > SLOW
            if k < SLOW_ROUNDS or not far:
                results[name].rounds.append(turn.take(timer))
    for result in results.values():
        result.ratios = ratios(result, baseline)
    return list(results.values())
