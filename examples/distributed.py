"""Train a forecasting model on one process or many, with the same losses on any number.

    python examples/distributed.py
    torchrun --nproc-per-node 2 examples/distributed.py

Each process has its share of every batch and of the validation series. Killed at any moment, a run
goes on from its last checkpoint when the command comes again, on as many processes as there are
then.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from distributed_checkpoint import load, newest, save
from forecasting_data import DATA_SEED, Split, make_data
from forecasting_models import MODELS, build
from forecasting_training import BATCH, at_steps
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler, TensorDataset


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    cuda = torch.cuda.is_available()
    add("--model", choices=MODELS, default="lstm", help="which to train (default lstm)")
    add("--epochs", type=int, default=5, help="epochs to train (default 5)")
    add("--batch", type=int, default=BATCH, help=f"series a step, of all processes ({BATCH})")
    add("--seed", type=int, default=DATA_SEED, help="of initial weights and of the series' order")
    add("--shard", action="store_true", help="share out the parameters, too (FSDP2)")
    add("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu",
        help="a GPU for each process, or processors (default cuda, if there is one)")  # fmt: skip
    add("--save-every", type=int, default=100, help="steps between two checkpoints (default 100)")
    add("--out", type=Path, default=Path("build/distributed"), help="folder for what is written")
    # Fewer series than the forecasting example's, for tests; ten fill every split.
    add("--series", type=int, default=10_000, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("epochs", "batch", "save_every"):
        if getattr(args, name) < 1:
            refuse(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if args.batch % processes:
        refuse(f"--batch: {args.batch} series do not divide among {processes} processes")
    return args


def refuse(message: str) -> NoReturn:
    """End this process; the first of all says why."""
    raise SystemExit(message if os.environ.get("RANK", "0") == "0" else 1)


def join(kind: str) -> torch.device:
    """Join the processes that torchrun started, or be the only one; returns this one's device."""
    device = torch.device(kind)
    if kind == "cuda":
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= count:
            raise SystemExit(
                f"--device: process {local} of this machine has no GPU of its own, as there are "
                f"{count}; start no more processes than that, or give --device cpu"
            )
        device = torch.device(kind, local)
        torch.cuda.set_device(device)
    alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, **({} if "RANK" in os.environ else alone))
    return device


def distribute(net: nn.Module, device: torch.device, shard: bool) -> nn.Module:
    """The network with gradients that are the mean over all processes."""
    if not shard:
        return DistributedDataParallel(net, [device] if device.type == "cuda" else None)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in (*net.children(), net):
        fully_shard(part, mesh=mesh)
    return net


class Training:
    """A network in training, and how to save it and to go on."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        torch.manual_seed(args.seed)
        model = MODELS[args.model]
        self.net = distribute(build(model).to(device), device, args.shard)
        self.optimizer = torch.optim.Adam(self.net.parameters(), model.lr)
        self.seed, self.device = args.seed, device
        # Of every step, over all processes; on the device, so that no step waits for it.
        self.losses: list[Tensor] = []

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step of Adam on this process's share of a batch."""
        # What a model with dropout draws follows from these alone, also after a restart.
        torch.manual_seed(hash((self.seed, len(self.losses), dist.get_rank())))
        loss = F.mse_loss(self.net(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        total = loss.detach() / dist.get_world_size()
        dist.all_reduce(total)
        self.losses.append(total)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: names are those of the bare network."""
        net, optimizer = get_state_dict(self.net, self.optimizer)
        return {"net": net, "optimizer": optimizer, "losses": numbers(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        parts = {"model_state_dict": state["net"], "optim_state_dict": state["optimizer"]}
        set_state_dict(self.net, self.optimizer, **parts)
        self.losses = [*torch.tensor(state["losses"], device=self.device)]


def numbers(losses: list[Tensor]) -> list[float]:
    """The losses on the host."""
    return torch.stack(losses).tolist() if losses else []


def shares(split: Split, args: argparse.Namespace, epoch: int) -> list[Tensor]:
    """This process's part of each batch of an epoch; batches follow from seed and epoch alone."""
    series = TensorDataset(*split)
    sampler: DistributedSampler[Any] = DistributedSampler(series, seed=args.seed, drop_last=True)
    sampler.set_epoch(epoch)
    size = args.batch // dist.get_world_size()
    order = torch.tensor([*sampler], device=split.x.device)
    return [share for share in order.split(size) if len(share) == size]


@torch.no_grad()
def last_step_error(net: nn.Module, split: Split) -> float:
    """Mean squared error at the last step; each process computes its part of the sum."""
    net.eval()
    own = slice(dist.get_rank(), None, dist.get_world_size())
    squares = (net(split.x[own])[:, -1] - split.y[own, -1]).square().sum()
    dist.all_reduce(squares)
    return squares.item() / split.y[:, -1].numel()


def resume(training: Training, args: argparse.Namespace) -> None:
    """Go on from the last checkpoint, if there is one."""
    path = newest(args.out)
    if path is None:
        return
    asked, found = settings(args), settings(args)
    load(path, {"settings": found})
    if found != asked:
        refuse(f"--out: {path} is of {found}, not of {asked}; empty the folder or give another")
    load(path, {"training": training})
    say(f"resumed from {path}")


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What must not change when a training goes on."""
    return {name: getattr(args, name) for name in ("model", "batch", "seed", "series")}


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Train to the end of the last epoch, and write the loss of every step."""
    data = at_steps(make_data(args.series, device), MODELS[args.model].steps)
    steps = len(data.train.x) // args.batch
    if steps == 0:
        refuse(f"--batch: {args.batch} series are more than the {len(data.train.x)} to train on")
    training = Training(args, device)
    # A step for nothing: after the first, DDP lays its buckets anew, and sums in another order.
    training.net(data.train.x[: args.batch // dist.get_world_size()]).sum().backward()
    training.optimizer.zero_grad()
    resume(training, args)
    for epoch in range(len(training.losses) // steps, args.epochs):
        training.net.train()
        left = shares(data.train, args, epoch)[len(training.losses) % steps :]
        start = time.perf_counter()
        for share in left:
            training.step(data.train.x[share], data.train.y[share])
            done = len(training.losses)
            if done % args.save_every == 0 or done == args.epochs * steps:
                save(args.out, done, {"training": training, "settings": settings(args)})
        loss = torch.stack(training.losses[-steps:]).mean().item()
        speed = len(left) * args.batch / (time.perf_counter() - start)
        error = last_step_error(training.net, data.valid)
        say(
            f"epoch {epoch + 1}/{args.epochs}  loss {loss:.4f}  last-step MSE {error:.4f}  "
            f"{speed:,.0f} series/s"
        )
    if dist.get_rank() == 0:
        (args.out / "losses.json").write_text(json.dumps(numbers(training.losses)))


def say(message: str) -> None:
    """Print once, not once a process."""
    if dist.get_rank() == 0:
        print(message, flush=True)


@record
def main(argv: list[str] | None = None) -> None:
    """Join the other processes, train, and leave them."""
    args = parse(argv)
    # Layers this small gain nothing from a second thread.
    torch.set_num_threads(1)
    device = join(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    train(args, device)
    # The network is gone by now. If it went after the group, the two could wait for each other.
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
