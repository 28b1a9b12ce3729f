"""Every kernel compiles for four GPUs, which need not be here, without stack and within limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("target", static.TARGETS)
def test_compiles_without_stack(target):
    options = ["--cells", "lstm", "gru", "--dtypes", "bf16", "fp32", "--sizes", "20", "128"]
    rows = check("--targets", target, *options)
    assert {row["form"] for row in rows} >= {"resident"}
    assert all(0 < row["registers"] <= 512 for row in rows)


@pytest.mark.parametrize("name", ["lstm_norm", "lstm_peephole", "gru_norm", "gru_before"])
def test_variants_compile_without_stack(name):
    check("--targets", "sm_90", "--cells", name, "--dtypes", "bf16", "--sizes", "20", "128")


def test_toy_cell_compiles():
    rows = check("--targets", "sm_90", "--cells", "mgu", "--dtypes", "bf16", "--sizes", "64")
    assert sum(row["cell"] == "mgu" for row in rows) == 4


def test_a_kernel_that_spills_is_seen():
    code = """
from benchmarks.static import *
case = Case("sm_90", "lstm", "bf16", 128, True, False)
row = measure(case, fit.Form(True, 16, 128, 2))
print(row, fails(row))
sys.exit(3 if fails(row) else 0)
"""
    done = python(code)
    assert done.returncode == 3, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[], ["--sizes", "20", "50", "100", "128"]], ids=str)
@pytest.mark.parametrize("target", static.TARGETS)
def test_every_kernel_compiles_without_stack(target, sizes):
    check("--targets", target, *sizes)
