"""Every kernel compiles for four GPUs, which need not be here, without stack and within limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.floors import FLOORS

static = pytest.importorskip("benchmarks.static")
TESTS = Path(__file__).parent
SCRIPT = """
import sys
import toy_cell
toy_cell.register()
from benchmarks import static
sys.exit(static.main(sys.argv[1:]))
"""


def python(code, *arguments):
    """Runs code in a process that compiles: one that interprets kernels cannot."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def check(*arguments):
    done = python(SCRIPT, "--json", *arguments)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    bad = [row for row in rows if row["stack"] or row["shared"] > row["limit"]]
    assert done.returncode == 0 and not bad, f"{bad} {done.stderr[-2000:]}"
    return rows


# One of each maker; `make test-all` has the others.
MAIN = ("sm_90", "gfx942")


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


TARGETS = [name if name in MAIN else slow(name) for name in static.TARGETS]


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_without_stack(target):
    options = ["--cells", "lstm", "gru", "--dtypes", "bf16", "fp32", "--sizes", "20", "128"]
    rows = check("--operators", "scan", "--targets", target, *options)
    assert {row["form"] for row in rows} >= {"resident"}
    assert all(0 < row["registers"] <= 512 for row in rows)


@pytest.mark.parametrize(
    "name", ["lstm_norm", *map(slow, ("lstm_peephole", "gru_norm")), "gru_before"]
)
def test_variants_compile_without_stack(name):
    options = ["--cells", name, "--dtypes", "bf16", "--sizes", "20", "128"]
    check("--operators", "scan", "--targets", "sm_90", *options)


def test_what_a_step_takes_is_read_from_the_machine_code():
    options = ["--cells", "lstm", "--dtypes", "bf16", "--sizes", "20"]
    for row in check("--operators", "scan", "--targets", "sm_90", "sm_100", *options):
        assert row["local"] == 0 < row["matrix"] and row["fit"] >= 1, row
        if row["form"] != "resident":
            continue
        assert row["body"] > row["barriers"] > 0, row
        if row["target"] == "sm_90":
            issue = row["body"] * row["warps"] / 4 / 1755
            assert row["issue_us"] == pytest.approx(issue, abs=1e-3)
            assert row["floor_us"] == FLOORS[64, 20][row["backward"]]
        if not row["features"] and not row["backward"]:
            # x has four gates; h and c are stored.
            assert row["bytes"] == 2 * 20 * (4 + 2)


def test_toy_cell_compiles():
    options = ["--cells", "mgu", "--dtypes", "bf16", "--sizes", "64"]
    rows = check("--operators", "scan", "--targets", "sm_90", *options)
    assert sum(row["cell"] == "mgu" for row in rows) == 4


def test_a_kernel_that_spills_is_seen():
    code = """
import sys
from benchmarks.static_scan import *
from benchmarks.static_targets import fails, measure
case = Case("sm_90", "lstm", "bf16", 128, True, False)
row = measure(*described(case, fit.Form(True, 16, 128, 2)))
print(row, fails(row))
sys.exit(3 if fails(row) else 0)
"""
    done = python(code)
    assert done.returncode == 3, done.stdout + done.stderr


def test_the_eps_of_norms_is_exact_in_float64():
    """In the interpreter it always is; a compiler may make a float32 of a number in a tuple."""
    code = """
from benchmarks.static_scan import *
from benchmarks.static_targets import compiled
for backward in (False, True):
    _, launch = described(Case("sm_90", "lstm_norm", "fp64", 16, backward, False))
    print(compiled("sm_90", launch).asm["ttir"].count("dense<1.000000e-05>"))
"""
    done = python(code)
    assert done.stdout.split() == ["1", "1"], done.stdout + done.stderr[-2000:]


def test_convolutions_compile_without_stack():
    options = ["--targets", *MAIN, "--dtypes", "bf16", "--sizes", "32", "64"]
    rows = check("--operators", "causal_conv1d", *options)
    assert {row["target"] for row in rows} == set(MAIN)
    assert {row["form"] for row in rows} == {"y", "sums", "dx", "dw"}


def test_wavenet_blocks_compile_without_stack_and_move_less():
    options = ["--targets", *MAIN, "--dtypes", "bf16", "--sizes", "20", "64"]
    rows = check("--operators", "wavenet", *options)
    assert {row["target"] for row in rows} == set(MAIN)
    for row in rows:
        if row["form"] == "block":
            # Read x, write z and what goes on; with a condition, read that too.
            assert row["bytes"] == 2 * row["C"] * (5 if row["condition"] else 3)
            assert row["torch's bytes"] > 4 * row["bytes"]


def test_layer_norm_compiles_without_stack():
    """A short row, one that fills a tile, and one in chunks."""
    options = ["--targets", *MAIN, "--dtypes", "bf16", "--sizes", "20", "4096", "16384"]
    rows = check("--operators", "layer_norm", *options)
    assert {row["target"] for row in rows} == set(MAIN)
    kernels = {"layer_norm_kernel", "backward_kernel", "backward_chunks_kernel", "sums_kernel"}
    assert {row["form"] for row in rows} == kernels


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["layer_norm", "causal_conv1d", "wavenet"])
@pytest.mark.parametrize("target", static.TARGETS)
def test_every_kernel_of_a_layer_compiles_without_stack(target, operator):
    check("--operators", operator, "--targets", target)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[], ["--sizes", "20", "50", "100", "128"]], ids=str)
@pytest.mark.parametrize("target", static.TARGETS)
def test_every_kernel_compiles_without_stack(target, sizes):
    check("--operators", "scan", "--targets", target, *sizes)
