"""What must stand beside a measurement: the machine, the versions, the switches and the commit."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
# What a measurement depends on; rows, figures and pages change after every one.
MEASURED = ("rnnkit", "csrc", "benchmarks/*.py")


def output_of(*command: str) -> str | None:
    """What a command prints, run in the checkout; None if it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit, "-dirty" if what runs differs from it; None outside of git."""
    found = output_of("git", "rev-parse", "--short=12", "HEAD")
    changed = output_of("git", "diff", "--name-only", "HEAD", "--", *MEASURED)
    return f"{found}-dirty" if found and changed else found


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def facts(device: torch.device) -> dict[str, Any]:
    """All of it, for the rows of one run. The switches are not here: a row may change them."""
    found: dict[str, Any] = {
        "device": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "commit": commit(),
        "date": now(),
    }
    if device.type == "cpu":
        found |= {"gflops": gflops()}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver(),
        }
    return found


def gflops() -> float:
    """What products of large float32 matrices reach on the CPU, which no layer exceeds."""
    a, seconds = torch.randn(1024, 1024), []
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return round(2 * 1024**3 / min(seconds) / 1e9, 1)


def driver() -> str | None:
    """The version of the GPU's driver."""
    text = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return text.splitlines()[0] if text else None
