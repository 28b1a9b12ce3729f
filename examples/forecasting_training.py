"""Training a model, and beside it its torch.nn twin, on the same batches."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from forecasting_data import Data, Split
from forecasting_models import Model, build, build_twin
from torch import Tensor, nn

import rnnkit

BATCH = 32


class Epoch(NamedTuple):
    """Mean squared errors after an epoch (train: during it), and the seconds its training took."""

    train: float
    valid: float
    last_step: float
    seconds: float


class Trainee:
    """A network in training: its optimizer and what each epoch came to."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        self.net = net
        self.optimizer = torch.optim.Adam(net.parameters(), lr)
        self.history: list[Epoch] = []

    @property
    def seconds(self) -> float:
        """Seconds per epoch: the median, since the first one also pays for warming up."""
        return statistics.median(epoch.seconds for epoch in self.history)

    def train_epoch(self, data: Data, order: Tensor) -> None:
        """Train once through the training series in the given order, then validate."""
        self.net.train()
        start = time.perf_counter()
        losses = [self.step(data.train, batch) * len(batch) for batch in order.split(BATCH)]
        # Reading the sum waits for the device, so the clock covers all of its work.
        train = torch.stack(losses).sum().item() / len(order)
        seconds = time.perf_counter() - start
        self.history.append(Epoch(train, *errors(self.net, data.valid), seconds))

    def step(self, split: Split, batch: Tensor) -> Tensor:
        """One step of Adam; the loss counts every time step, not only the last."""
        loss = F.mse_loss(self.net(split.x[batch]), split.y[batch])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Run(NamedTuple):
    """One model trained from one seed, with its twin if asked for."""

    seed: int
    ours: Trainee
    twin: Trainee | None
    backend: str


@torch.no_grad()
def errors(net: nn.Module, split: Split) -> tuple[float, float]:
    """Mean squared error over all steps and at the last one."""
    net.eval()
    squares = (net(split.x) - split.y).square()
    return squares.mean().item(), squares[:, -1].mean().item()


def backend_used(net: nn.Module, x: Tensor) -> str:
    """Where a training step runs the recurrent layers; convolutions have the reference only."""
    with rnnkit.dispatch.recording() as decisions:
        net(x)
    return " + ".join(dict.fromkeys(decision.backend for decision in decisions)) or "reference"


def at_steps(data: Data, steps: slice) -> Data:
    """The data with only the targets of the given steps."""
    return Data(*(Split(split.x, split.y[:, steps]) for split in data))


def train(
    model: Model,
    data: Data,
    epochs: int,
    seed: int,
    twin: bool = False,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> Run:
    """Train a model from a seed, which gives initial weights and batches, as the data's dtype."""
    data = at_steps(data, model.steps)
    torch.manual_seed(seed)
    net = build(model).to(data.train.x)
    ours = Trainee(net, model.lr)
    pair = [ours]
    if twin and model.has_twin:
        pair.append(Trainee(build_twin(model, net).to(data.train.x), model.lr))
    backend = backend_used(net, data.train.x[:BATCH])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(data.train.x), generator=generator).to(data.train.x.device)
        for trainee in pair:
            trainee.train_epoch(data, order)
        # Turn about, so that neither always runs on what the other left in the caches.
        pair.reverse()
        report(ours.history[-1])
    return Run(seed, ours, next((t for t in pair if t is not ours), None), backend)
