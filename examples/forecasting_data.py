"""Noisy sums of two sine waves, and the next ten values as the target of every step."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

INPUT_STEPS = 50
HORIZON = 10
DATA_SEED = 42


class Split(NamedTuple):
    """Inputs (series, steps, 1) and targets (series, steps, HORIZON)."""

    x: Tensor
    y: Tensor


class Data(NamedTuple):
    """Seven, two and one tenth of the series; nothing here ever looks at the last."""

    train: Split
    valid: Split
    test: Split


def make_series(count: int, steps: int, seed: int = DATA_SEED) -> np.ndarray:
    """`count` series of `steps` values in float32, made at random."""
    # The legacy generator, and this order of draws, are what make the series the published ones.
    draw = np.random.RandomState(seed).rand
    f1, f2, o1, o2 = draw(4, count, 1)
    t = np.linspace(0, 1, steps)
    waves = 0.5 * np.sin((t - o1) * (10 * f1 + 10)) + 0.2 * np.sin((t - o2) * (20 * f2 + 20))
    return (waves + 0.1 * (draw(count, steps) - 0.5)).astype(np.float32)


def make_data(
    count: int = 10_000, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Data:
    """The whole data set as tensors: inputs, their next values as targets, in three splits."""
    series = torch.from_numpy(make_series(count, INPUT_STEPS + HORIZON)).to(device, dtype)
    x = series[:, :INPUT_STEPS, None]
    y = series[:, 1:].unfold(1, HORIZON, 1)
    ends = [count * 7 // 10, count * 9 // 10]
    return Data(*map(Split, x.tensor_split(ends), y.tensor_split(ends)))
