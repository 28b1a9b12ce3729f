"""The example of a job of several processes: its losses, its checkpoints, its command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import SECONDS, launch, run
from torch.optim.optimizer import register_optimizer_step_pre_hook

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import distributed
import distributed_checkpoint
from forecasting_data import Split
from forecasting_models import MODELS, Model, recurrent

OPTIONS = ["--series", "200", "--batch", "20", "--epochs", "3", "--save-every", "4"]
STEPS = 21
# Sums come in another order: a rounding a step.
TOLERANCE = STEPS * torch.finfo(torch.float32).eps
NOISY = Model("noisy LSTM", recurrent("LSTM", zoneout=0.2))


def curve(folder: Path) -> list[float]:
    """The loss of every step."""
    found = json.loads((folder / "losses.json").read_text())
    assert len(found) == STEPS
    return found


def main(argv: list[str]) -> None:
    """The example, with a model more, whose losses depend on the random state."""
    MODELS["noisy"] = NOISY
    distributed.main(argv)


def train(folder: Path, count: int, *options: str) -> str:
    return run(main, folder / "logs", count, [*OPTIONS, "--out", f"{folder}", *options])


def die_while_training(argv: list[str]) -> None:
    """A run whose last process is killed in a step of the second epoch."""
    steps = 0

    def count(*args: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 10 and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(count)
    main(argv)


def killed(folder: Path, count: int, *options: str) -> None:
    arguments = [*OPTIONS, "--out", f"{folder}", *options]
    codes = launch(die_while_training, folder / "logs", count, arguments)
    assert codes[-1] == -signal.SIGKILL
    assert not (folder / "losses.json").exists()


def assert_close(found: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(
        torch.tensor(found), torch.tensor(expected), rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process that nothing interrupted."""
    folder = tmp_path_factory.mktemp("alone")
    train(folder, 1)
    return curve(folder)


@pytest.mark.parametrize("options", [(), ("--shard",)], ids=["DDP", "FSDP2"])
def test_losses_are_the_same_on_any_number_of_processes(
    options: tuple[str, ...], alone: list[float], tmp_path: Path
) -> None:
    printed = train(tmp_path, 2, *options)
    assert_close(curve(tmp_path), alone)
    assert curve(tmp_path)[-1] < curve(tmp_path)[0], "nothing was learnt"
    assert printed.count("epoch 3/3") == 1
    assert "series/s" in printed


@pytest.mark.parametrize(
    ("count", "options"),
    [(2, ()), (2, ("--shard",)), pytest.param(5, (), marks=pytest.mark.slow)],
    ids=["DDP", "FSDP2", "DDP, five processes"],
)
def test_killed_run_goes_on_as_if_nothing_had_been(
    count: int, options: tuple[str, ...], tmp_path: Path
) -> None:
    """Bit for bit, noise included. The order of a sum matters from three processes on."""
    options = ("--model", "noisy", *options)
    train(tmp_path / "whole", count, *options)
    killed(tmp_path / "killed", count, *options)
    assert "resumed from" in train(tmp_path / "killed", count, *options)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


@pytest.mark.parametrize("counts", [(2, 1), (1, 2)], ids=["on fewer", "on more"])
def test_killed_run_goes_on_elsewhere(
    counts: tuple[int, int], alone: list[float], tmp_path: Path
) -> None:
    before, after = counts
    killed(tmp_path, before, "--shard")
    assert "resumed from" in train(tmp_path, after)
    assert_close(curve(tmp_path), alone)


@pytest.fixture
def group() -> Iterator[None]:
    """This process as a group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def save_until_killed(folder: Path, after: int) -> None:
    """Saves checkpoints, and is killed before the given operation on files in the last of them."""
    dist.init_process_group("gloo")
    for step in range(1, 4):
        distributed_checkpoint.save(folder, step, {"value": torch.full((3,), step), "step": step})
    left = after

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if any(str(folder) in str(arg) for arg in args):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    distributed_checkpoint.save(folder, 4, {"value": torch.full((3,), 4), "step": 4})


def test_kill_at_any_moment_of_saving_leaves_a_checkpoint(tmp_path: Path, group: None) -> None:
    outcomes = []
    code = None
    while code != 0:
        folder = tmp_path / f"{len(outcomes)}"
        (code,) = launch(save_until_killed, folder / "logs", 1, folder, len(outcomes))
        assert code in (0, -signal.SIGKILL)
        path = distributed_checkpoint.newest(folder)
        state = {"value": torch.zeros(3, dtype=torch.long), "step": 0}
        distributed_checkpoint.load(path, state)
        assert path.name == f"step-{state['step']:08}"
        assert state["value"].tolist() == [state["step"]] * 3
        assert not [*folder.glob("*.tmp")], "what was left unfinished is gone"
        outcomes.append(state["step"])
    # Early kills leave the one before, late ones the new one.
    assert outcomes == sorted(outcomes)
    assert min(outcomes.count(3), outcomes.count(4)) > 2


def test_torchrun(alone: list[float], tmp_path: Path) -> None:
    """The command that the example tells."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", distributed.__file__, *OPTIONS, "--out", f"{tmp_path}"]
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert_close(curve(tmp_path), alone)


def test_order_of_the_series_follows_from_seed_and_epoch(group: None) -> None:
    split = Split(torch.zeros(100, 1), torch.zeros(100, 1))

    def order(seed: int, epoch: int) -> list[int]:
        args = distributed.parse(["--batch", "20", "--seed", f"{seed}"])
        return torch.cat(distributed.shares(split, args, epoch)).tolist()

    assert order(1, 2) == order(1, 2)
    assert sorted(order(1, 2)) == [*range(100)]
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def refused(argv: list[str]) -> str:
    with pytest.raises(SystemExit) as error:
        distributed.main(argv)
    return str(error.value)


def test_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert refused(["--batch", "32"]) == "--batch: 32 series do not divide among 3 processes"
    monkeypatch.setenv("RANK", "1")
    assert refused(["--batch", "32"]) == "1", "only the first process says why"


@pytest.mark.parametrize("name", ["--epochs", "--batch", "--save-every"])
def test_wrong_number_is_refused(name: str) -> None:
    assert refused([name, "0"]) == f"{name}: expected at least 1, got 0"


def test_batch_of_more_series_than_there_are_is_refused(tmp_path: Path) -> None:
    options = ["--series", "100", "--batch", "80", "--out", f"{tmp_path}"]
    assert launch(main, tmp_path, 1, options) == [1]
    printed = (tmp_path / "0.log").read_text()
    assert printed.strip() == "--batch: 80 series are more than the 70 to train on"


def test_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 1, "--epochs", "1")
    options = [*OPTIONS, "--out", f"{tmp_path}", "--seed", "1"]
    assert launch(main, tmp_path / "again", 1, options) == [1]
    printed = (tmp_path / "again" / "0.log").read_text()
    for part in ("--out", "step-00000007", "'seed': 42", "'seed': 1"):
        assert part in printed
