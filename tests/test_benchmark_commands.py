"""The benchmarks' commands: what they store and print, and how they end."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import torch

import rnnkit
from benchmarks import __main__ as commands
from benchmarks import base, gpu, profile, run, suites
from benchmarks.problem import Choice
from benchmarks.rows import beaten, marked, read, slower
from benchmarks.table import table
from benchmarks.timing import Plan
from rnnkit.cells import CELLS
from rnnkit.cpu.library import functions
from rnnkit.dispatch import BACKENDS

TINY = ["--suite", "rnn", "--shapes", "5,3,4", "--cells", "lstm"]
TINY += ["--modes", "inference", "forward+backward"]
FACTS = {"device": "here", "threads": 1, "torch": "1", "commit": "c0ffee"}
QUICK = Plan(rounds=5, sample=1e-4, turn=1e-4)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in suites.SUITES:
        monkeypatch.setattr(suites.load(name), "plan", lambda device: QUICK)
    # The machine's speed is not what is tested; and this code is some commit's.
    monkeypatch.setattr(run, "facts", lambda device: FACTS)
    # Two threads that wait for each other on a busy machine take many times as long.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_run_stores_well_formed_rows(tmp_path, capsys):
    out = tmp_path / "deeper" / "rows.jsonl"
    assert run.main([*TINY, "--out", str(out)]) == 0
    found = read(out)
    native = functions()[0] is not None
    assert {row["provider"] for row in found} == {"torch.nn", "rnnkit", "rnnkit reference"}
    assert [row["mode"] for row in found[:3]] == ["forward+backward"] * 3
    for row in found:
        problem = ("suite", "cell", "T", "B", "H", "dtype", "form", "baseline")
        assert [row[name] for name in problem] == ["rnn", "lstm", 5, 3, 4, "fp32", "", "torch.nn"]
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["us_per_step"] == pytest.approx(row["p50_ms"] * 1e3 / 5, rel=1e-3)
        assert row["failure"] is None and 0 <= row["error"] < row["error_bound"]
        assert len(row["ratios"]) >= 5 and row["first_call_s"] > 0 and "noisy" in row
        facts = ("device", "threads", "torch", "commit", "date")
        assert row.keys() >= {*facts, "allow_tf32_cudnn", "allow_tf32_matmul", "backend", "load"}
        assert (row["mode"] == "inference") == (row["saved_mib"] is None)
    assert {r["backend"] for r in found if r["provider"] == "rnnkit reference"} == {"reference"}
    assert {r["backend"] for r in found if r["provider"] == "rnnkit"} == {
        "cpu" if native else "torch"
    }
    assert found[0]["absent"].keys() >= {"rnnkit triton", "rnnkit cuda", "torch.compile"}
    printed = capsys.readouterr().out
    assert "forward+backward" in printed and "absent: rnnkit triton: " in printed


def test_what_is_stored_is_not_measured_again(tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    assert run.main([*TINY, "--out", str(out), "--budget", "0"]) == 0
    assert read(out) == []
    measured = []
    monkeypatch.setattr(
        run,
        "run",
        lambda problem, *args, run=run.run: measured.append(problem) or run(problem, *args),
    )
    assert run.main([*TINY, "--modes", "inference", "--out", str(out)]) == 0
    assert run.main([*TINY, "--out", str(out)]) == 0
    assert [problem.mode for problem in measured] == ["inference", "forward+backward"]
    assert run.main([*TINY, "--out", str(out), "--repeats", "2"]) == 0
    assert len(measured) == 4, "twice each, those that there are counted"
    monkeypatch.setattr(
        run, "facts", lambda device, facts=run.facts: facts(device) | {"commit": "b"}
    )
    assert run.main([*TINY, "--out", str(out)]) == 0
    assert len(measured) == 6, "other code"
    monkeypatch.setattr(run, "facts", lambda device: FACTS | {"commit": "b-dirty"})
    assert run.main([*TINY, "--out", str(out)]) == run.main([*TINY, "--out", str(out)]) == 0
    assert len(measured) == 10, "nobody knows which code"


def test_only_the_providers_asked_for_are_measured(tmp_path, capsys):
    arguments = [*ONE, "--out", str(tmp_path / "rows.jsonl"), "--providers"]
    assert run.main([*arguments, "rnnkit"]) == 0
    assert run.main([*arguments, "rnnkit reference", "mine"]) == 1
    assert "failed: no problem has a provider mine\n" in capsys.readouterr().out
    found = [row["provider"] for row in read(tmp_path / "rows.jsonl")]
    assert found == ["torch.nn", "rnnkit", "torch.nn", "rnnkit reference"]


@pytest.fixture
def wrong(monkeypatch):
    """Outputs that are one thousandth too large."""
    right = rnnkit.Recurrent.forward

    def forward(self, *args, **kwargs):
        output, state = right(self, *args, **kwargs)
        return output * 1.001, state

    monkeypatch.setattr(rnnkit.Recurrent, "forward", forward)


def test_a_wrong_layer_fails_the_run(tmp_path, capsys, wrong):
    out = tmp_path / "rows.jsonl"
    assert run.main([*TINY, "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "failed: rnnkit, lstm inference fp32 T=5 B=3 H=4: error 1.0e-03 of output" in printed
    for row in read(out):
        assert (row["p50_ms"] is None) == (row["failure"] is not None)
        assert (row["failure"] is None) == (row["provider"] == "torch.nn")


@pytest.fixture
def slow(monkeypatch):
    """A sleep in the launcher of whatever runs the layer."""
    run_layer = rnnkit.functional.recurrent

    def late(*args, **kwargs):
        time.sleep(2e-3)
        return run_layer(*args, **kwargs)

    def plant():
        monkeypatch.setattr("rnnkit.layers.rnn.recurrent", late)

    return plant


ONE = [*TINY, "--modes", "inference"]


def test_a_sleep_is_a_slow_down_against_the_base(tmp_path, capsys, slow):
    if base.subprocess.run(["git", "rev-parse", "HEAD"], cwd=base.ROOT).returncode:
        pytest.skip("there is no history")
    out = tmp_path / "rows.jsonl"
    slow()
    assert run.main([*ONE, "--out", str(out), "--base", "HEAD"]) == 1
    printed = capsys.readouterr().out
    assert "slower: lstm inference fp32 T=5 B=3 H=4: " in printed and "rnnkit @HEAD's" in printed
    found = {row["provider"]: row for row in read(out)}
    assert found["rnnkit"]["p50_ms"] > 2 > found["rnnkit @HEAD"]["p50_ms"] > 0


def test_an_unknown_base_is_named():
    with pytest.raises(SystemExit, match=r"--base no-such-revision: .+"):
        base.Base("no-such-revision")


def test_a_sleep_is_a_slow_down_against_the_stored_row(tmp_path, capsys, slow, monkeypatch):
    out = tmp_path / "rows.jsonl"
    assert run.main([*ONE, "--out", str(out)]) == 0
    assert "slower:" not in capsys.readouterr().out
    slow()
    monkeypatch.setattr(
        run, "facts", lambda device, facts=run.facts: facts(device) | {"commit": "b"}
    )
    assert run.main([*ONE, "--out", str(out)]) == 0
    assert "slower: rnnkit, lstm inference fp32 T=5 B=3 H=4: " in capsys.readouterr().out


def test_a_used_up_budget_leaves_rows_out_and_says_which(tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "rows.jsonl")]
    assert run.main([*TINY, *out, "--budget", "0"]) == 0
    printed = capsys.readouterr().out
    assert "left out, the budget of 0 s used up: 2" in printed
    assert "  lstm forward+backward fp32 T=5 B=3 H=4" in printed

    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=iter([0.0, 1.0, 11.0]).__next__))
    assert run.main([*TINY, *out, "--budget", "10"]) == 0
    said = capsys.readouterr()
    assert "used up: 1\n  lstm inference" in said.out and "lstm forward+backward" in said.out
    assert "1/2" in said.err and "2/2" not in said.err


def test_telling_rows_come_first():
    choice = Choice(dtypes=["fp32", "bf16"], cells=["lstm", "gru"], shapes=[(5, 3, 4)])
    found = suites.ordered(["rnn"], "cpu", choice)
    assert len(found) == len(set(found)) == 12
    assert [p.cell for p in found[:2]] == ["lstm", "gru"]
    assert {(p.mode, p.dtype) for p in found[:2]} == {("forward+backward", "fp32")}
    assert {(p.mode, p.dtype) for p in found[-2:]} == {("forward", "bf16")}


def test_cells_and_backends_come_from_the_registries(tmp_path, monkeypatch):
    import toy_cell

    monkeypatch.setitem(CELLS, "mgu", rnnkit.cells.Cell("mgu", 2, 1, toy_cell.step, toy_cell.vjp))
    for device in ("cpu", "cuda"):
        problems = suites.ordered(["rnn"], device, Choice())
        assert {problem.cell for problem in problems} == set(CELLS)
    built = suites.rnn.build(suites.rnn.Problem("mgu", "inference", "fp32", 5, 3, 4), CPU)
    known = {f"rnnkit {name}" for name in BACKENDS if name != "torch"} | {"rnnkit", "torch.nn"}
    assert built.providers.keys() | built.absent.keys() >= known
    assert "C++ equations" in built.absent["rnnkit cpu"] or "cpu" not in BACKENDS
    assert built.absent["torch.nn"] == "torch.nn has no mgu"
    assert built.absent["rnnkit reference"] == "it is what rnnkit chooses"
    built = suites.rnn.build(suites.rnn.Problem("gru_before", "inference", "fp32", 5, 3, 4), CPU)
    assert "rnnkit" in built.providers, "else there is no baseline"
    assert functions()[0] is None or next(iter(built.providers)) == "rnnkit reference"


CPU = torch.device("cpu")


@pytest.mark.parametrize("form", list(suites.load("rnn").FORMS))
def test_every_form_of_a_layer_is_right(form):
    problem = suites.rnn.Problem("gru", "forward+backward", "fp32", 6, 3, 4, form)
    assert [row["failure"] for row in run.run(problem, CPU)] == [None] * 3


@pytest.mark.parametrize("suite", ["norm", "conv"])
def test_what_is_parallel_in_time_is_right(suite):
    module = suites.load(suite)
    for name in {problem.cell for _, problem in module.problems("cpu", Choice())}:
        sizes = (6, 8) if suite == "norm" else (2, 9, 4, 2, 2)
        rows = run.run(module.Problem(name, "forward+backward", "fp32", *sizes), CPU)
        assert [row["failure"] for row in rows] == [None] * len(rows) and len(rows) == 3
        assert "cannot be imported" in str(rows[0]["absent"]) or suite == "conv"


@pytest.mark.parametrize("model", ["lstm", "gru-reset-before", "conv-gru", "wavenet-gated"])
def test_models_are_right_before_they_train(model):
    problem = suites.load("forecasting").Problem(model, "training epoch", "fp32", 60)
    rows = run.run(problem, CPU)
    assert {row["provider"] for row in rows} >= {"rnnkit"} and rows[0]["absent"].keys() <= {
        "keras",
        "torch.nn",
    }
    assert [row["failure"] for row in rows] == [None] * len(rows)
    for name, reason in rows[0]["absent"].items():
        assert "keras" in reason.lower() if name == "keras" else "lacks a layer" in reason


def test_a_wrong_model_gets_no_time(wrong):
    problem = suites.load("forecasting").Problem("rnn", "training epoch", "fp32", 60)
    found = {row["provider"]: row for row in run.run(problem, CPU)}
    assert found["rnnkit"]["failure"].startswith("error ") and found["rnnkit"]["p50_ms"] is None
    assert found["torch.nn"]["failure"] is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shapes", "5,3"], "expected T,B,H"),
        (["--shapes", "5,0,3"], "three positive numbers, got '5,0,3'"),
        (["--dtypes", "tf32"], "tf32 is a GPU's arithmetic"),
        (["--cells", "MGU"], "no problem of the suite all has MGU"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


ROW = dict(suite="rnn", cell="gru", mode="forward", dtype="fp32", T=5, B=3, H=4, form="")
ROW |= dict(p50_ms=1.0, failure=None, provider="rnnkit", baseline="torch.nn", commit="a")
ROW |= dict(device="here", threads=1, torch="1", date="1", ratio=2.0, ratios=[2.0] * 5)


def test_rounds_that_disagree_are_noisy():
    steady = marked(ROW | dict(provider="steady", ratios=[2.0, 2.0, 2.1, 2.0, 2.0]), [])
    unsteady = marked(ROW | dict(provider="unsteady", ratios=[1.0, 1.5, 2.0, 2.5, 3.0]), [])
    assert (steady["noisy"], unsteady["noisy"]) == (False, True)
    assert "1 (2.00)  1 (2.00)?" in table([steady, unsteady]).splitlines()[-1]


@pytest.mark.parametrize("ratio, noisy", [(2.2, False), (2.4, True), (1.8, False), (1.7, True)])
def test_runs_of_the_same_code_that_disagree_are_noisy(ratio, noisy):
    first = marked(ROW, [])
    again = ROW | dict(ratio=ratio, date="2")
    assert marked(again, [first])["noisy"] == noisy
    assert not marked(again | dict(commit="b"), [first])["noisy"], "other code may be slower"
    dirty = dict(commit="a-dirty")
    assert not marked(again | dirty, [first | dirty])["noisy"], "nor is it known what this is"


def test_a_slow_down_is_one_beyond_doubt():
    first = marked(ROW, [])
    late = ROW | dict(ratio=2.6, ratios=[2.1, 2.4, 2.6, 2.8, 4.0], commit="b", noisy=True)
    assert slower([late], [first]) == [
        "rnnkit, gru forward fp32 T=5 B=3 H=4: 2.6 times torch.nn's, 2 at a"
    ]
    for same in ({"ratios": [2.2] * 5}, {"device": "there"}, {"commit": "a"}):
        assert slower([late | same], [first]) == []
    assert slower([late], [first | {"ratios": [1.0, 2.0, 2.0, 2.6, 2.6]}]) == []


def test_a_base_is_compared_round_by_round():
    ours = ROW | dict(ratios=[2.0, 4.0, 6.0], noisy=True)
    base = ROW | dict(provider="rnnkit @main", ratios=[1.0, 2.0, 3.0])
    assert beaten([ours, base]) == ["gru forward fp32 T=5 B=3 H=4: 2 times rnnkit @main's"]
    assert beaten([base | dict(provider="rnnkit"), ours | dict(provider="rnnkit @main")]) == []
    assert beaten([ours, base | dict(ratios=[1.0, 3.9, 5.9])]) == [], "but for one round they equal"
    assert beaten([ours, base | dict(ratio=None, ratios=None)]) == []


def test_a_profile_says_where_the_time_goes(tmp_path, capsys):
    sizes = ["--T", "5", "--B", "3", "--H", "4", "--out", str(tmp_path)]
    assert profile.main(["LSTM", *sizes]) == 0
    printed = capsys.readouterr().out
    text = (tmp_path / "table.txt").read_text()
    assert text in printed and "host" in text and "100.0%" in text
    if functions()[0] is not None:
        assert "rnnkit_scan_backward" in text
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any(event.get("name") == profile.CALL for event in events)
    assert profile.main(["gru", *sizes, "--provider", "rnnkit reference"]) == 0
    assert "aten::mm" in capsys.readouterr().out
    assert profile.main(["gru_before", *sizes, "--provider", "torch.nn"]) == 2
    assert "torch.nn is absent: torch.nn has no gru_before" in capsys.readouterr().err


def test_one_command_has_them_all(capsys):
    assert commands.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert commands.main(["walk"]) == 2
    for name in commands.COMMANDS:
        assert f"    {name} " in printed
        with pytest.raises(SystemExit) as ended:
            commands.main([name, "--help"])
        assert ended.value.code == 0


def test_no_gpu_is_a_plain_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks gpu: torch ") and "finds no CUDA device" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_step_that_hangs_is_ended_and_keeps_its_log(tmp_path):
    start, log = time.monotonic(), tmp_path / "log"
    code = "import time; print('begun', flush=True); time.sleep(60)"
    assert gpu.step(["timeit", "-n1", "-r1", code], log, 2.0) is None
    assert time.monotonic() - start < 30
    assert "begun" in log.read_text() and "KeyboardInterrupt" in log.read_text()


@pytest.mark.parametrize(
    "tests, times, sanitizer, status",
    [(0, 0, 0, 0), (1, 0, 0, 1), (0, 1, 0, 1), (None, 0, 0, 1), (0, 0, None, 0), (0, 0, 1, 1)],
)
def test_all_steps_end_in_a_summary(tests, times, sanitizer, status, tmp_path, monkeypatch):
    ran = []

    def step(arguments, log, seconds):
        ran.append(log.name)
        if log.name == "tests.log":
            log.write_text(
                "[gw0] [ 33%] PASSED tests/test_a.py::test_a[b c] \n"
                "tests/test_a.py::test_c[d] PASSED    [ 66%]\n"
                "[gw1] [100%] FAILED tests/test_a.py::test_b\nFAILED tests/test_a.py::test_b - x\n"
            )
            return tests
        if log.name == "times.log":
            log.write_text("left out, the budget of 5 s used up: 7\n")
            assert arguments[:2] == ["benchmarks", "run"]
            assert run.main([*ONE, "--out", arguments[arguments.index("--out") + 1]]) == 0
            return times
        log.write_text("12 kernels, 0 that spill\n")
        return sanitizer if log.name == "sanitizer.log" else 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "step", step)
    monkeypatch.setattr(gpu, "environment", lambda: "here")
    monkeypatch.setattr(gpu, "target", lambda: "sm_90")
    assert gpu.main(["--out", str(tmp_path)]) == status
    assert ran == [
        "build.log",
        "tests.log",
        "times.log",
        "sanitizer.log",
        "static.txt",
        "tests.log",
    ]
    summary = (tmp_path / "summary.txt").read_text()
    for expected in ("1 failed, 2 passed", "FAILED tests/test_a.py", "left out", "12 kernels"):
        assert expected in summary
    assert "lstm inference" in summary
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(gpu.FILES) and len(gpu.FILES) <= 8


def test_steps_run_compiled_kernels_on_the_device(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("RNNKIT_BACKEND", "reference")
    found = gpu.variables()
    assert not {"TRITON_INTERPRET", "RNNKIT_BACKEND"} & found.keys()
    assert found["RNNKIT_TEST_DEVICE"] == "cuda"
