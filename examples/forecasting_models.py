"""The nine forecasting models, each built from rnnkit's layers or from their torch.nn twins."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import torch.nn.functional as F
from forecasting_data import HORIZON
from torch import Tensor, nn

import rnnkit

UNITS = 20

# Where a builder finds its layers: the module `rnnkit`, or TORCH with torch.nn's.
Layers = ModuleType | SimpleNamespace


class PaddedConv1d(nn.Conv1d):
    """What a causal convolution takes with torch.nn alone: pad the past by hand, then activate."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int, activation: str
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, dilation=dilation)
        self.past = (kernel_size - 1) * dilation
        self.activate = getattr(F, activation)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C, L) to (N, C', L)."""
        return self.activate(super().forward(F.pad(input, (self.past, 0))))


TORCH = SimpleNamespace(RNN=nn.RNN, LSTM=nn.LSTM, GRU=nn.GRU, CausalConv1d=PaddedConv1d)


class RecurrentForecaster(nn.Module):
    """A recurrent layer over (N, L, 1), perhaps behind a convolution, and a linear layer a step."""

    def __init__(self, recurrent: nn.Module, front: nn.Module | None = None) -> None:
        super().__init__()
        self.front = front
        self.recurrent = recurrent
        self.head = nn.Linear(UNITS, HORIZON)

    def forward(self, x: Tensor) -> Tensor:
        """Forecast (N, L', HORIZON): at every step that is left, the values that follow it."""
        if self.front is not None:
            x = self.front(x.mT).mT
        return self.head(self.recurrent(x)[0])


class ConvForecaster(nn.Module):
    """A causal network on (N, C, L), used on (N, L, 1)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Forecast (N, L, HORIZON)."""
        return self.net(x.mT).mT


def recurrent(kind: str, **options: bool) -> Callable[[Layers], nn.Module]:
    """A builder of two stacked recurrent layers of one kind."""

    def build(layers: Layers) -> nn.Module:
        layer = getattr(layers, kind)(1, UNITS, num_layers=2, batch_first=True, **options)
        return RecurrentForecaster(layer)

    return build


def conv_gru(layers: Layers) -> nn.Module:
    """A strided convolution halves the steps that the two GRU layers must remember across."""
    gru = layers.GRU(UNITS, UNITS, num_layers=2, batch_first=True)
    return RecurrentForecaster(gru, front=nn.Conv1d(1, UNITS, 4, stride=2))


def simple_wavenet(layers: Layers) -> nn.Module:
    """Causal convolutions in a row, each looking twice as far back as the one before."""
    widths = [1] + [UNITS] * 8
    convs = [
        layers.CausalConv1d(c, UNITS, 2, dilation=dilation, activation="relu")
        for c, dilation in zip(widths, (1, 2, 4, 8) * 2, strict=False)
    ]
    return ConvForecaster(nn.Sequential(*convs, nn.Conv1d(UNITS, HORIZON, 1)))


def gated_wavenet(layers: Layers) -> nn.Module:
    """The residual network of the WaveNet paper, with three layers of its thirty."""
    return ConvForecaster(layers.WaveNet(1, HORIZON, residual_channels=32, layers=3, blocks=1))


class Model(NamedTuple):
    """One row of the table: what to build, how to train it, and what to compare it with."""

    title: str
    build: Callable[[Layers], nn.Module]
    lr: float = 1e-3
    published: float | None = None
    has_twin: bool = False
    # The steps whose targets the model's outputs stand for.
    steps: slice = slice(None)


MODELS = {
    "rnn": Model("deep RNN", recurrent("RNN"), 1e-2, 0.0096, has_twin=True),
    "rnn-layer-norm": Model("layer-norm RNN", recurrent("RNN", layer_norm=True), 1e-2, 0.0121),
    "lstm": Model("LSTM", recurrent("LSTM"), published=0.0086, has_twin=True),
    "lstm-peephole": Model("peephole LSTM", recurrent("LSTM", peephole=True)),
    "gru": Model("GRU", recurrent("GRU"), published=0.0103, has_twin=True),
    "gru-reset-before": Model("GRU, reset before", recurrent("GRU", reset_after=False)),
    # Output i has seen the inputs up to step 2i + 3, the kernel's last.
    "conv-gru": Model(
        "Conv1D + GRU", conv_gru, published=0.0080, has_twin=True, steps=slice(3, None, 2)
    ),
    "wavenet-simple": Model("WaveNet, simple", simple_wavenet, published=0.0072, has_twin=True),
    "wavenet-gated": Model("WaveNet, gated", gated_wavenet),
}


def build(model: Model) -> nn.Module:
    """The model on rnnkit's layers, with their default initial weights."""
    return model.build(rnnkit)


def build_twin(model: Model, ours: nn.Module) -> nn.Module:
    """The same model on torch.nn's layers, starting from the same weights."""
    twin = model.build(TORCH)
    twin.load_state_dict(ours.state_dict())
    return twin
