"""Checkpoints of a job of several processes: a kill at any moment leaves one that is whole."""

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

KEPT = 2
UNFINISHED = ".tmp"


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the checkpoint of a step, then remove all but the newest; all processes call it.

    A folder gets its name when all of it is written, so the newest with a name is whole.
    """
    path = folder / f"step-{step:08}"
    dcp.save(state, checkpoint_id=unfinished(path))
    if dist.get_rank() == 0:
        unfinished(path).rename(path)
        for old in named(folder)[:-KEPT]:
            shutil.rmtree(old)


def newest(folder: Path) -> Path | None:
    """The last checkpoint, the same for all processes; removes what a kill left unfinished."""
    found: list[Path | None] = [None]
    if dist.get_rank() == 0:
        for rest in folder.glob(f"step-*{UNFINISHED}"):
            shutil.rmtree(rest)
        found = [max(named(folder), default=None)]
    dist.broadcast_object_list(found)
    return found[0]


def load(path: Path, state: dict[str, Any]) -> None:
    """Fill `state` in place from a checkpoint of any number of processes; all processes call it."""
    dcp.load(state, checkpoint_id=path)


def named(folder: Path) -> list[Path]:
    """The checkpoints in a folder that have their names, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != UNFINISHED)


def unfinished(path: Path) -> Path:
    """Where a checkpoint is while it is written."""
    return path.with_suffix(UNFINISHED)
