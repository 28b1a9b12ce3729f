"""The benchmarks' commands: what they store and print, and how they end."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import torch

import rnnkit
from benchmarks import gpu, rnn
from benchmarks.table import table
from benchmarks.timing import Plan
from rnnkit.cpu.library import functions

TINY = ["--shapes", "5,3,4", "--cells", "LSTM", "--modes", "inference", "forward+backward"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setitem(rnn.PLANS, "cpu", Plan(rounds=5, sample=1e-4, turn=1e-4))
    # Two threads that wait for each other on a busy machine take many times as long.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_stores_well_formed_rows(tmp_path, capsys):
    out = tmp_path / "deeper" / "rows.jsonl"
    assert rnn.main([*TINY, "--out", str(out)]) == 0
    found = rows(out)
    native = {"rnnkit cpu"} if functions()[0] is not None else set()
    expected = {"torch.nn", "rnnkit", "rnnkit reference"} | native
    assert {row["provider"] for row in found} == expected
    assert [row["mode"] for row in found[: len(expected)]] == ["inference"] * len(expected)
    for row in found:
        assert (row["cell"], row["T"], row["B"], row["H"], row["dtype"]) == (
            "LSTM",
            5,
            3,
            4,
            "fp32",
        )
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["us_per_step"] == pytest.approx(row["p50_ms"] * 1e3 / 5, rel=1e-3)
        assert row["failure"] is None and 0 <= row["error"] < row["error_bound"]
        assert len(row["ratios"]) >= 5 and row["first_call_s"] > 0
        facts = ("device", "threads", "torch", "python", "triton", "commit", "date")
        assert row.keys() >= {*facts, "allow_tf32_cudnn", "allow_tf32_matmul", "backend", "load"}
    assert {r["backend"] for r in found if r["provider"] == "rnnkit reference"} == {"reference"}
    assert rnn.main([*TINY, "--out", str(out)]) == 0
    assert len(rows(out)) == 2 * len(found), "old rows stay"
    printed = capsys.readouterr().out
    assert "forward+backward" in printed and "absent: rnnkit triton: " in printed


def test_a_wrong_layer_fails_the_run(tmp_path, capsys, monkeypatch):
    right = rnnkit.LSTM.forward

    def wrong(self, *args):
        output, state = right(self, *args)
        return output * 1.001, state

    monkeypatch.setattr(rnnkit.LSTM, "forward", wrong)
    out = tmp_path / "rows.jsonl"
    assert rnn.main([*TINY, "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "failed: rnnkit, LSTM inference fp32 5 3 4: error 1.0e-03 of output" in printed
    for row in rows(out):
        assert (row["p50_ms"] is None) == (row["failure"] is not None)
        assert (row["failure"] is None) == (row["provider"] == "torch.nn")


def test_a_used_up_budget_leaves_rows_out_and_says_which(capsys, monkeypatch):
    assert rnn.main([*TINY, "--budget", "0"]) == 0
    printed = capsys.readouterr().out
    assert "left out, the budget of 0 s used up: 2 of 2" in printed
    assert "  LSTM forward+backward fp32 T=5 B=3 H=4" in printed

    monkeypatch.setattr(rnn, "time", SimpleNamespace(monotonic=iter([0.0, 1.0, 11.0]).__next__))
    assert rnn.main([*TINY, "--budget", "10"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 2\n  LSTM forward+backward" in printed and "LSTM  inference" in printed


def test_telling_rows_come_first():
    args = rnn.parse(["--dtypes", "fp32", "bf16", "--shapes", "5,3,4", "--cells", "LSTM", "GRU"])
    found = rnn.ordered(args)
    assert len(found) == len(set(found)) == 12
    assert [p.cell for p in found[:2]] == ["LSTM", "GRU"]
    assert {(p.mode, p.dtype) for p in found[:2]} == {("forward+backward", "fp32")}
    assert {(p.mode, p.dtype) for p in found[-2:]} == {("forward", "bf16")}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shapes", "5,3"], "expected T,B,H"),
        (["--shapes", "5,0,3"], "three positive numbers, got '5,0,3'"),
        (["--dtypes", "tf32"], "tf32 is a GPU's arithmetic"),
        (["--cells", "MGU"], "invalid choice: 'MGU'"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        rnn.main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_table_marks_rounds_that_disagree():
    row = dict(cell="GRU", mode="forward", dtype="fp32", T=5, B=3, H=4, p50_ms=1.0, failure=None)
    steady = row | dict(provider="steady", ratio=2.0, ratios=[2.0, 2.0, 2.1, 2.0, 2.0])
    unsteady = row | dict(provider="unsteady", ratio=2.0, ratios=[1.0, 1.5, 2.0, 2.5, 3.0])
    last = table([steady, unsteady]).splitlines()[-1]
    assert "1 (2.00)  1 (2.00)?" in last


def test_no_gpu_is_a_plain_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks.gpu: torch ") and "finds no CUDA device" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_step_that_hangs_is_ended_and_keeps_its_log(tmp_path):
    start, log = time.monotonic(), tmp_path / "log"
    code = "import time; print('begun', flush=True); time.sleep(60)"
    assert gpu.step(["timeit", "-n1", "-r1", code], log, 2.0) is None
    assert time.monotonic() - start < 30
    assert "begun" in log.read_text() and "KeyboardInterrupt" in log.read_text()


@pytest.mark.parametrize("tests, times, status", [(0, 0, 0), (1, 0, 1), (0, 1, 1), (None, 0, 1)])
def test_all_steps_end_in_a_summary(tests, times, status, tmp_path, monkeypatch):
    ran = []

    def step(arguments, log, seconds):
        ran.append(arguments[0])
        if arguments[0] == "pytest":
            log.write_text("..F\nFAILED tests/test_a.py::test_b - x\n1 failed, 2 passed in 3.1s\n")
            return tests
        if arguments[0] == "benchmarks.rnn":
            log.write_text("left out, the budget of 5 s used up: 7 of 9\n")
            assert rnn.main([*TINY, "--out", arguments[arguments.index("--out") + 1]]) == 0
            return times
        log.write_text("12 kernels, 0 with stack\n")
        return 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "step", step)
    monkeypatch.setattr(gpu, "environment", lambda: "here")
    monkeypatch.setattr(gpu, "target", lambda: "sm_90")
    assert gpu.main(["--out", str(tmp_path)]) == status
    assert ran == ["pytest", "benchmarks.rnn", "benchmarks.static"]
    summary = (tmp_path / "summary.txt").read_text()
    for expected in ("1 failed, 2 passed", "FAILED tests/test_a.py", "left out", "12 kernels"):
        assert expected in summary
    assert "LSTM  forward+backward" in summary
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(gpu.FILES) and len(gpu.FILES) <= 8


def test_steps_run_compiled_kernels_on_the_device(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("RNNKIT_BACKEND", "reference")
    found = gpu.variables()
    assert not {"TRITON_INTERPRET", "RNNKIT_BACKEND"} & found.keys()
    assert found["RNNKIT_TEST_DEVICE"] == "cuda"
