"""Timing measures what it says, and times nothing that is wrong."""

from __future__ import annotations

import random
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from benchmarks.graph import Graphed
from benchmarks.suites import rnn
from benchmarks.timing import WARM_CALLS, Plan, Result, error_bound, measure, on_cpu

QUICK = Plan(rounds=5, sample=1e-3, turn=2e-3)


@pytest.fixture
def one_thread():
    """Two threads that wait for each other on a busy machine take many times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Clock:
    """Time that passes only while a fake provider runs."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def timer(self, call, calls):
        start = self.now
        for _ in range(calls):
            call()
        return self.now - start

    def provider(self, name, seconds, result=1.0):
        def call():
            self.calls.append(name)
            self.now += seconds() if callable(seconds) else seconds
            return {"output": torch.full((2, 2), result)}

        return call


def timed(clock, providers, plan=QUICK):
    expected = {"output": torch.ones(2, 2, dtype=torch.float64)}
    return {r.provider: r for r in measure(providers, expected, 1e-6, clock.timer, plan)}


def test_percentiles_and_ratios_are_those_of_the_calls():
    clock = Clock()
    jitter = random.Random(0)
    providers = {
        "base": clock.provider("base", 2e-3),
        "fast": clock.provider("fast", lambda: jitter.choice([1e-3, 2e-3, 3e-3, 4e-3, 5e-3])),
        "slow": clock.provider("slow", 3e-3),
    }
    found = timed(clock, providers, Plan(rounds=200, sample=1e-3, turn=1e-3))
    assert found["base"].percentiles() == pytest.approx((2e-3, 2e-3, 2e-3))
    assert found["base"].ratios == [1.0] * 200
    assert found["slow"].ratio == pytest.approx(1.5)
    p20, p50, p80 = found["fast"].percentiles()
    assert p20 == pytest.approx(2e-3, abs=1e-3) and p80 == pytest.approx(4e-3, abs=1e-3)
    assert p50 == pytest.approx(3e-3, abs=1e-9)


def test_short_calls_are_timed_many_at_a_time():
    clock = Clock()
    found = timed(clock, {"base": clock.provider("base", 1e-5)})
    assert found["base"].percentiles() == pytest.approx((1e-5, 1e-5, 1e-5))
    assert found["base"].first_call_s == pytest.approx(1e-5)
    assert len(clock.calls) > 100 * QUICK.rounds


def test_a_long_call_is_one_sample_and_needs_no_other_to_warm_it():
    clock = Clock()
    found = timed(clock, {"base": clock.provider("base", 1.0)})
    assert found["base"].percentiles() == pytest.approx((1.0, 1.0, 1.0))
    assert len(clock.calls) == 2 + QUICK.rounds, "one is judged, one tells how long it takes"


def test_who_is_far_slower_takes_part_in_few_rounds():
    clock = Clock()
    costs = {"base": 1e-3, "slow": 15e-3, "slower": 17e-3}
    found = timed(clock, {name: clock.provider(name, cost) for name, cost in costs.items()})
    assert [len(v.ratios) for v in found.values()] == [QUICK.rounds, QUICK.rounds, 2]
    assert found["slower"].ratio == pytest.approx(17)


def test_what_is_judged_may_be_another_call():
    clock = Clock()
    providers = {"base": clock.provider("base", 1e-3, 5.0), "bad": clock.provider("bad", 1e-3)}
    checks = {"base": clock.provider("check", 1.0), "bad": clock.provider("check", 1.0, 2.0)}
    expected = {"output": torch.ones(2, 2, dtype=torch.float64)}
    base, bad = measure(providers, expected, 1e-6, clock.timer, QUICK, checks)
    assert base.failure is None and base.percentiles()[1] == pytest.approx(1e-3)
    assert bad.failure and not bad.rounds


def test_the_first_call_stands_apart():
    clock = Clock()
    cost = iter([7.0])
    found = timed(clock, {"base": clock.provider("base", lambda: next(cost, 1e-3))})
    assert found["base"].first_call_s == pytest.approx(7.0)
    assert found["base"].percentiles()[2] == pytest.approx(1e-3)


def test_providers_take_turns_so_that_a_slowing_machine_changes_no_ratio():
    clock = Clock()
    slowdown = {"base": 1.0, "other": 1.0}
    turns = dict.fromkeys(slowdown, 0)

    def cost(name, seconds):
        def call():
            turns[name] += 1
            slowdown[name] = 1.0 + turns[name] // 10
            return seconds * slowdown[name]

        return call

    found = timed(
        clock,
        {
            "base": clock.provider("base", cost("base", 2e-3)),
            "other": clock.provider("other", cost("other", 1e-3)),
        },
        Plan(rounds=6, sample=1e-3, turn=1e-3),
    )
    names = [name for k, name in enumerate(clock.calls) if clock.calls[k - 1 : k] != [name]]
    assert names[-12:] == ["base", "other"] * 6
    assert found["base"].percentiles()[0] < found["base"].percentiles()[2]
    assert found["other"].ratios == pytest.approx([0.5] * 6)


@pytest.mark.parametrize("wrong", [1.001, float("nan"), float("inf")])
def test_a_wrong_provider_gets_no_time(wrong):
    clock = Clock()
    providers = {
        "base": clock.provider("base", 1e-3),
        "wrong": clock.provider("wrong", 1e-3, wrong),
    }
    found = timed(clock, providers)
    assert found["wrong"].rounds == [] and found["wrong"].ratio is None
    assert "output is above 1.0e-06" in found["wrong"].failure
    assert found["base"].failure is None and len(found["base"].rounds) == QUICK.rounds


@pytest.mark.parametrize(
    "result",
    [{}, {"output": torch.ones(2, 1)}, {"output": torch.ones(2, 2), "more": torch.ones(1)}],
)
def test_missing_and_misshapen_tensors_are_wrong(result):
    clock = Clock()
    found = timed(clock, {"base": clock.provider("base", 1e-3), "wrong": lambda: result})
    assert found["wrong"].failure.startswith("error inf of ")


def test_a_provider_that_raises_is_recorded():
    def broken():
        raise ValueError("no such size\nand more")

    clock = Clock()
    found = timed(clock, {"base": clock.provider("base", 1e-3), "broken": broken})
    assert found["broken"].failure == "ValueError: no such size"


def test_without_a_right_baseline_there_are_times_but_no_ratios():
    clock = Clock()
    providers = {"base": clock.provider("base", 1e-3, 2.0), "ours": clock.provider("ours", 1e-3)}
    found = timed(clock, providers)
    assert found["base"].failure and found["ours"].ratio is None
    assert found["ours"].percentiles()[1] == pytest.approx(1e-3)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("name", ["output", "h_n", "dinput", "dweight_hh_l0", "dbias_ih_l0"])
def test_a_wrong_tensor_of_a_layer_is_caught(kind, name, one_thread):
    built = rnn.build(rnn.Problem(kind, "forward+backward", "fp32", 6, 3, 4), torch.device("cpu"))
    providers = built.providers

    def planted():
        found = providers["rnnkit"]()
        found[name] = found[name] * 1.001
        return found

    calls = {"torch.nn": providers["torch.nn"], "planted": planted}
    right, wrong = measure(calls, built.expected, built.bound, on_cpu, Plan(5, 1e-4, 1e-4))
    assert right.failure is None and 0 < right.error < built.bound
    assert wrong.where == name and wrong.failure and not wrong.rounds


def bound_of(kind):
    problem = rnn.Problem(kind, "forward+backward", "fp32", 50, 3, 20)
    return rnn.build(problem, torch.device("cpu")).bound


def test_a_bound_allows_for_what_the_problem_makes_larger(one_thread, monkeypatch):
    """Norms of small numbers do; nothing that is measured makes it much larger."""
    plain = error_bound(torch.finfo(torch.float32).eps, 50, 20)
    for kind in ("gru", "gru_before", "lstm_norm"):
        assert plain <= bound_of(kind) < 3 * plain
    monkeypatch.setattr(rnn, "tame", lambda layer: None)
    assert bound_of("lstm_norm") > 3 * plain


def test_a_problem_without_a_finite_result_is_refused(one_thread, monkeypatch):
    monkeypatch.setattr("benchmarks.problem.worst", lambda *given: (float("inf"), "output"))
    with pytest.raises(ValueError, match="no finite result"):
        rnn.build(rnn.Problem("gru", "inference", "fp32", 6, 3, 4), torch.device("cpu"))


def test_a_result_without_times_has_no_ratio():
    assert Result("none").ratio is None


class FakeCuda:
    """What Graphed takes of torch.cuda: a capture runs Python but no kernels, a replay kernels."""

    def __init__(self, monkeypatch):
        self.capturing, self.kernels, self.replayed = None, [], 0
        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name in ("Stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, lambda: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self.replay))

    @contextmanager
    def graph(self, graph):
        self.capturing = graph
        yield
        self.capturing = None

    def launch(self, kernel):
        self.kernels.append(kernel) if self.capturing else kernel()

    def replay(self):
        self.replayed += 1
        for kernel in self.kernels:
            kernel()


def test_a_graph_is_captured_once_and_replayed_at_every_call(monkeypatch):
    cuda, made = FakeCuda(monkeypatch), []

    def call():
        output = torch.zeros(2)
        made.append(output)
        cuda.launch(lambda: output.add_(1))
        return {"output": output}

    graphed = Graphed(call)
    assert made == []
    found = graphed()
    # All calls but the last are warm-up, which the graph is not of.
    assert len(made) == WARM_CALLS + 1 and found["output"] is made[-1]
    assert found["output"].tolist() == [1, 1], "a result is of a replay: capturing computes nothing"
    assert graphed()["output"].tolist() == [2, 2]
    assert (len(made), cuda.replayed) == (WARM_CALLS + 1, 2)
