"""Another revision of rnnkit as a provider: in a process of its own, taking its turns like others.

python -m benchmarks.base     what runs there, on requests from standard input
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from types import TracebackType
from typing import Any

import torch

from .facts import ROOT
from .problem import Built, Problem
from .suites import load, suite_of
from .timing import Tensors, on_cpu, on_cuda

# What is taken of the other revision; the benchmarks are this one's.
TAKEN = ("rnnkit", "csrc", "setup.py")


class Remote:
    """The other revision's provider of the problem that it built last."""

    def __init__(self, base: Base) -> None:
        self.base = base

    def __call__(self) -> Tensors:
        found: Tensors = self.base.ask("check")
        return found

    def time(self, calls: int) -> float:
        """The seconds that calls take there."""
        return float(self.base.ask("time", calls))


class Base:
    """A revision, unpacked beside the checkout for as long as the context lasts."""

    def __init__(self, revision: str) -> None:
        self.name = f"rnnkit @{revision}"
        command = ["git", "archive", revision, *TAKEN]
        done = subprocess.run(command, cwd=ROOT, capture_output=True)
        if done.returncode != 0:
            raise SystemExit(f"--base {revision}: {done.stderr.decode().strip()}")
        self.packed = done.stdout

    def __enter__(self) -> Base:
        self.folder = tempfile.TemporaryDirectory()
        with tarfile.open(fileobj=io.BytesIO(self.packed)) as archive:
            archive.extractall(self.folder.name, filter="data")
        path = os.pathsep.join((self.folder.name, str(ROOT)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.base"],
            cwd=self.folder.name,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        place = self.ask("start", torch.get_num_threads())
        assert place.startswith(os.path.realpath(self.folder.name)), place
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def ask(self, request: str, *arguments: Any) -> Any:
        """The answer of the other process; its exceptions are raised here."""
        assert self.process.stdin and self.process.stdout
        pickle.dump((request, arguments), self.process.stdin)
        self.process.stdin.flush()
        try:
            answer = pickle.load(self.process.stdout)
        except EOFError:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def add(self, problem: Problem, device: torch.device, built: Built) -> None:
        """Adds the provider, or the reason why that revision has none."""
        try:
            self.ask("build", suite_of(problem), tuple(problem), device)  # type: ignore[arg-type]
        except Exception as error:
            built.absent[self.name] = f"{type(error).__name__}: {error}"
        else:
            built.providers[self.name] = Remote(self)


class Worker:
    """Answers requests."""

    def start(self, threads: int) -> str:
        """Where the measured package is."""
        import rnnkit

        torch.set_num_threads(threads)
        return os.path.realpath(rnnkit.__file__)

    def build(self, suite: str, problem: tuple[Any, ...], device: torch.device) -> None:
        module = load(suite)
        self.built = module.build(module.Problem(*problem), device)
        self.timer = on_cuda if device.type == "cuda" else on_cpu

    def check(self) -> Tensors:
        found = (self.built.providers | self.built.checks)["rnnkit"]()
        return {name: v.detach() for name, v in found.items()}

    def time(self, calls: int) -> float:
        return self.timer(self.built.providers["rnnkit"], calls)


def main() -> None:
    # What anything prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    worker = Worker()
    while True:
        try:
            request, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = getattr(worker, request)(*arguments)
        except Exception as error:
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
