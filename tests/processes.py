"""Groups of processes for tests: what torchrun does, at a fraction of its time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Processes are forked from one that has imported torch: that takes longer than most of their tasks.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "torch.distributed.checkpoint", "rnnkit"])
SECONDS = 120


def launch(task: Callable[..., None], logs: Path, count: int, *arguments: Any) -> list[int]:
    """Has `count` processes call task(*arguments), each in the environment that torchrun makes.

    Returns their exit codes. When one fails, or nothing ends in time, those that run are killed.
    """
    logs.mkdir(parents=True, exist_ok=True)
    # The system chooses the port, and it is taken before anybody hears of it.
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    calls = [(k, count, store.port, logs / f"{k}.log", task, arguments) for k in range(count)]
    processes = [SERVER.Process(target=work, args=call) for call in calls]
    for process in processes:
        process.start()
    running = {process.sentinel: process for process in processes}
    while running:
        ended = [running.pop(sentinel) for sentinel in wait(running, SECONDS)]
        if not ended or any(process.exitcode for process in ended):
            break
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def run(task: Callable[..., None], logs: Path, count: int, *arguments: Any) -> str:
    """The same for processes none of which may fail; returns what they printed."""
    codes = launch(task, logs, count, *arguments)
    printed = "\n".join(log.read_text() for log in sorted(logs.glob("*.log")))
    assert codes == [0] * count, printed
    return printed


def work(
    rank: int, count: int, port: int, log: Path, task: Callable[..., None], arguments: Any
) -> None:
    """What each process does."""
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(file, standard)
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{count}"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    torch.set_num_threads(1)
    task(*arguments)
