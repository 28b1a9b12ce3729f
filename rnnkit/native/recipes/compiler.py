"""Finds compilers and runs them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class NoLibrary(Exception):
    """Why there is no library."""


class Failure(NoLibrary):
    """What went wrong: the user should know."""


class Refusal(Failure):
    """What a compiler says of the sources, and would again: no full disk, no signal, no g++."""


class Compiler(NamedTuple):
    """How to call it, and what it says it is."""

    command: tuple[str, ...]
    version: str


def check_allowed() -> None:
    """Raises where nothing is compiled, whatever compilers there are."""
    if os.environ.get("RNNKIT_BUILD") == "0":
        raise NoLibrary("RNNKIT_BUILD=0 forbids compiling")
    if sys.platform == "win32":
        raise NoLibrary("they are not compiled on Windows: MSVC is not supported")


def first_working(names: Sequence[str]) -> Compiler | None:
    """The first of these commands that runs."""
    for name in names:
        command = tuple(shlex.split(name))
        # Running it shows more than its presence: macOS has a c++ that tells how to install one.
        with suppress(OSError, subprocess.CalledProcessError):
            said = subprocess.check_output([*command, "--version"], stderr=subprocess.DEVNULL)
            return Compiler(command, said.decode(errors="replace").strip())
    return None


def run(command: list[str], csrc: Path) -> None:
    """Runs the compiler on sources in a folder; raises with the first of its errors."""
    # In English, so that errors are found by the word.
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        words = re.compile("error|fatal|undefined|multiple|duplicate")
        errors = [line for line in lines if words.search(line)] or lines
        said = "\n  ".join(errors[:3]) or f"exit status {done.returncode}"
        of_sources = rf"{re.escape(str(csrc))}/\S+(\(\d+\)|:\d+:\d+): error\b|ptxas .*\berror\b"
        refused = any(re.match(of_sources, line) for line in errors)
        raise (Refusal if refused else Failure)(f"{command[0]} failed:\n  {said}")
