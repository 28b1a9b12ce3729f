"""`python -m rnnkit`: versions, devices, and which backends work here and why the others do not."""

from __future__ import annotations

import importlib
import platform

import torch

from .cuda import library
from .cuda.scan import gpu_of
from .dispatch import BACKENDS, Problem, why_not
from .version import __version__


def devices() -> list[tuple[str, torch.device]]:
    """The devices to ask about: the CPU, then every GPU."""
    found = [(platform.processor() or platform.machine(), torch.device("cpu"))]
    for index in range(torch.cuda.device_count()):
        found.append((torch.cuda.get_device_name(index), torch.device("cuda", index)))
    return found


def version(package: str) -> str:
    try:
        return str(importlib.import_module(package).__version__)
    except ImportError as error:
        return f"not usable ({error})"


def main() -> None:
    print(f"rnnkit {__version__}, Python {platform.python_version()}")
    for package in ("torch", "triton", "numpy"):
        print(f"{package} {version(package)}")
    print(f"CUDA kernels: {library.look()}")
    for name, device in devices():
        print(f"\n{device}: {name}")
        sizes = {"T": 64, "B": 16, "N": 1, "H": 64, "runs": 1}
        plain = {"dtype": torch.float32, "backward": True, "extras": ()}
        for backend in BACKENDS:
            problem = Problem(cell="lstm", device=device, **sizes, **plain)  # type: ignore[arg-type]
            reason = why_not(backend, problem)
            print(f"  {backend}: {'works' if reason is None else reason}")
            if backend == "cuda" and reason is None:
                print(f"    the planner's view: {gpu_of(device)}")


if __name__ == "__main__":
    main()
