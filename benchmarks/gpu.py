"""All that a few minutes of a GPU should tell, in one folder: tests, times, compiled kernels.

    python3 -m benchmarks gpu --out DIR [--budget SECONDS]

Builds the kernels, runs the tests, the benchmarks, compute-sanitizer (where there is one) on small
scans, and the compile figures. Needs a checkout and a python3 with torch, triton, numpy and pytest;
nothing is installed. Each step runs in its own process, so that one that crashes or hangs does not
take the others along. The exit status is 1 if a test, a benchmark or the sanitizer failed, and 2
without a CUDA device.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch

from .facts import ROOT, facts, output_of
from .rows import read
from .table import failures, table

FILES = (
    "environment.txt",
    "build.log",
    "tests.log",
    "times.jsonl",
    "times.log",
    "sanitizer.log",
    "static.txt",
    "summary.txt",
)
# Shares of the budget, each at most.
BUILD, TESTS, TIMES, SANITIZER = 0.5, 0.3, 0.4, 0.15
# The tests that only a GPU makes tell something. To find all others takes minutes: they come last.
TELLING = ("cuda_gpu", "cuda_kernels", "cuda_norms", "cuda_stepwise", "scan", "causal_conv1d")
# The test that has compute-sanitizer watch the CUDA kernels on small scans.
WATCHED = "tests/test_cuda_gpu.py::test_the_kernels_are_clean"
# Seconds for a process to end after an interrupt, and for one past its own budget to finish a row.
GRACE, LAST_ROW = 15.0, 60.0
# A step needs at least these many seconds to say something.
LEAST = 20.0
SHOWN = 20


def variables() -> dict[str, str]:
    """The steps' environment: the checkout's package, compiled kernels, dispatch's own choices."""
    unset = ("TRITON_INTERPRET", "RNNKIT_BACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # Workers that share the tests must order them equally, whatever they take from sets.
    fixed = {"PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1", "RNNKIT_TEST_DEVICE": "cuda"}
    return kept | fixed | {"PYTHONPATH": path}


def hear_interrupts() -> None:
    """A command started in a shell's background ignores SIGINT, and passes that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupts a process, so that it still reports, then ends it and all that it started."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def step(arguments: list[str], log: Path, seconds: float) -> int | None:
    """Runs `python -m ARGUMENTS`, its output at the end of a log.

    The exit status, or None if it ran out of time.
    """
    print(f"{' '.join(arguments)}: up to {seconds:.0f} s, {log}", flush=True)
    command = [sys.executable, "-m", *arguments]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables(),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            stop(process)
            return None
        except BaseException:
            stop(process)
            raise


def environment() -> str:
    """What the machine has, as text."""
    parts = [json.dumps(facts(torch.device("cuda")), indent=2)]
    parts.append(output_of("nvidia-smi") or "nvidia-smi: not found")
    parts.append(f"{torch.cuda.get_device_properties(0)}")
    return "\n\n".join(parts) + "\n"


def target() -> str:
    """The device's architecture, as `benchmarks static` names it."""
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(0).gcnArchName).split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


def test_arguments(telling: bool) -> list[str]:
    """The tests on the device; by several workers where the plugin for it is installed."""
    files = [f"tests/test_{name}.py" for name in TELLING]
    which = files if telling else ["tests", *(f"--ignore={file}" for file in files)]
    arguments = ["pytest", *which, "-v", "-m", "gpu or not slow", "--durations", "10"]
    arguments += ["--deselect", WATCHED]
    # A stack trace tells where a kernel hangs.
    arguments += ["-o", "faulthandler_timeout=60"]
    # What tests compile is kept there, and the checkout may be read-only.
    arguments += ["-o", f"cache_dir={Path(tempfile.gettempdir()) / 'rnnkit-tests'}"]
    if importlib.util.find_spec("xdist") is not None:
        arguments += ["-n", str(min(8, max(1, (os.cpu_count() or 2) // 2)))]
    return arguments


def outcome(status: int | None) -> str:
    return "out of time" if status is None else f"exit status {status}"


# A test's line as pytest -v prints it, with its plugin for several workers or without.
VERBOSE = (
    r"\[gw\d+\] \[ *\d+%\] (?P<word>[A-Z]+) (?P<test>.*\S)",
    r"(?P<test>\S+::.*?) (?P<word>[A-Z]+)\b",
)


def test_lines(status: int | None, log: Path) -> list[str]:
    """The counts, of a run that was cut, too, and the first of the failures."""
    if not log.exists():
        return [f"{log.stem}: left out, no time was left"]
    lines = log.read_text(errors="replace").splitlines()
    found = [next(filter(None, (re.match(form, line) for form in VERBOSE)), None) for line in lines]
    words = Counter(v["word"].lower() for v in found if v)
    failed = [f"{v['word']} {v['test']}" for v in found if v and v["word"] in ("FAILED", "ERROR")]
    more = [f"and {len(failed) - SHOWN} more: {log}"] if len(failed) > SHOWN else []
    counts = ", ".join(f"{count} {word}" for word, count in sorted(words.items()))
    count = counts or f"no counts: see {log}"
    return [f"{log.stem}: {count} ({outcome(status)})", *failed[:SHOWN], *more]


def time_lines(status: int | None, stored: Path, log: Path) -> list[str]:
    """The table of the rows that were stored, the failures, and the count of those left out."""
    rows = read(stored)
    logged = log.read_text(errors="replace").splitlines()
    left = [line for line in logged if line.startswith(("left out", "absent"))]
    failed = [f"failed: {line}" for line in failures(rows)]
    return [f"times: {len(rows)} rows ({outcome(status)})", table(rows), *failed, *left]


def static_lines(status: int | None, log: Path) -> list[str]:
    if not log.exists():
        return ["static: left out, no time was left"]
    lines = log.read_text(errors="replace").splitlines()
    return [f"static: {lines[-1] if lines else 'no output'} ({outcome(status)})"]


def steps(out: Path, budget: float) -> tuple[list[str], bool]:
    """Runs all steps that the budget allows: the summary's lines, and whether all went well."""
    end = time.monotonic() + budget

    def run(log: str, share: float, *arguments: str) -> int | None:
        seconds = min(share * budget, end - time.monotonic())
        return step(list(arguments), out / log, seconds) if seconds > LEAST else None

    (out / "environment.txt").write_text(environment())
    # What works here; to ask builds the kernels, once for all that follows.
    build = run("build.log", BUILD, "rnnkit")
    tests = run("tests.log", TESTS, *test_arguments(telling=True))
    seconds = max(0.0, min(TIMES * budget, end - time.monotonic() - GRACE))
    stored, log = out / "times.jsonl", out / "times.log"
    arguments = ["benchmarks", "run", "--device", "cuda", "--out", str(stored)]
    times = step([*arguments, "--budget", f"{seconds:.0f}"], log, seconds + LAST_ROW)
    watched = run("sanitizer.log", SANITIZER, "pytest", WATCHED, "-v", "-rs")
    compile_for = ("--targets", target(), "--dtypes", "bf16", "fp32")
    static = run("static.txt", 1.0, "benchmarks", "static", *compile_for)
    others = run("tests.log", 1.0, *test_arguments(telling=False))
    lines = [f"build: {outcome(build)}", *test_lines(tests, out / "tests.log")]
    lines += time_lines(times, stored, log)
    lines += test_lines(watched, out / "sanitizer.log")
    lines += static_lines(static, out / "static.txt")
    # The sanitizer and the other tests take long: not to end in time is no failure.
    in_time = (0, None)
    return lines, tests == 0 and times == 0 and watched in in_time and others in in_time


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks gpu", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and results")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds (default 480)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        found = f"torch {torch.__version__} finds no CUDA device"
        print(f"benchmarks gpu: {found}, and this measures one", file=sys.stderr)
        return 2
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    lines, well = steps(out, args.budget)
    text = "\n".join(lines)
    (out / "summary.txt").write_text(text + "\n")
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
