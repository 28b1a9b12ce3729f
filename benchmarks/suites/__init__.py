"""What is measured, by suite, and what the suites have in common.

A suite is a module with Problem (a named tuple: the fields of its rows), problems(device, choice),
which yields each with a rank (0 is the most telling), build(problem, device), and plan(device).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch

from ..problem import DTYPES, Choice, Problem

# By name, each a module.
SUITES = ("rnn", "forecasting", "norm", "conv")
# What is measured by default, the most telling first.
DEFAULT_DTYPES = {"cpu": ("fp32",), "cuda": ("bf16", "tf32", "fp16", "fp32")}


def load(name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{name}")


def suite_of(problem: Problem) -> str:
    """The suite that a problem is of."""
    return type(problem).__module__.rpartition(".")[2]


def dtypes(device: str, choice: Choice) -> list[tuple[int, str]]:
    """The dtypes to measure, each with a rank."""
    return list(enumerate(choice.dtypes or DEFAULT_DTYPES[device]))


def made(problem: Problem, device: torch.device) -> dict[str, Any]:
    """What layers and tensors are made with."""
    return {"dtype": DTYPES[problem.dtype], "device": device}


def ordered(names: list[str], device: str, choice: Choice) -> list[Problem]:
    """The problems of these suites that are asked for, the most telling first."""
    ranked: list[tuple[int, Problem]] = []
    for name in names:
        try:
            ranked += load(name).problems(device, choice)
        except ImportError as error:
            print(f"left out: the suite {name}: {error}", file=sys.stderr)
    return [v for _, v in sorted(ranked, key=lambda pair: pair[0]) if choice.takes(v)]
