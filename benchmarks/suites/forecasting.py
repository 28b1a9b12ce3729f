"""A training epoch of each forecasting model of the examples: ours, torch.nn's twin, and Keras 3.

All train on the same series in batches of 32 with Adam, as examples/forecasting.py does. Keras runs
on its torch backend by `fit`, as its users call it, from our initial weights, so that its outputs
can be judged like the others'.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..problem import MODES, Built, Case, Choice, LayerCall
from ..timing import Call, Plan, Tensors
from . import made

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
os.environ.setdefault("KERAS_BACKEND", "torch")

from forecasting_data import HORIZON, Data, make_data
from forecasting_models import MODELS, UNITS, Model, build_twin
from forecasting_models import build as build_model
from forecasting_training import BATCH, Trainee, at_steps

MODE = "training epoch"
SERIES = 2_000
JUDGED = ("output", "dinput")


class Problem(NamedTuple):
    """An epoch over seven tenths of the series. cell: the model's key."""

    cell: str
    mode: str
    dtype: str
    series: int

    @property
    def bound_sizes(self) -> tuple[int, int]:
        """The steps of all layers that follow each other."""
        return 4 * 50, UNITS


def problems(device: str, choice: Choice) -> Iterator[tuple[int, Problem]]:
    """Every model."""
    for key in MODELS:
        yield 1, Problem(key, MODE, "fp32", SERIES)


def plan(device: str) -> Plan:
    return Plan(rounds=5, turn=0.2)


def epoch_of(net: nn.Module, model: Model, data: Data) -> Call:
    trainee, count = Trainee(net, model.lr), len(data.train.x)

    def epoch() -> Tensors:
        net.train()
        for batch in torch.randperm(count).to(data.train.x.device).split(BATCH):
            trainee.step(data.train, batch)
        return {}

    return epoch


def build(problem: Problem, device: torch.device) -> Built:
    torch.manual_seed(0)
    model = MODELS[problem.cell]
    data = at_steps(make_data(problem.series, **made(problem, device)), model.steps)
    net = build_model(model).to(device)
    twin = build_twin(model, net).to(device) if model.has_twin else None
    case = Case(problem._replace(mode=MODES[0]), net, twin, data.train.x[:BATCH].clone())
    expected = {name: v for name, v in case.exact().items() if name in JUDGED}

    def check(function: Callable[[Tensor], Tensor]) -> Call:
        return LayerCall(function, {}, case.input, case.cotangent, MODES[0])

    providers = {"rnnkit": epoch_of(net, model, data)}
    checks, absent = {"rnnkit": check(net)}, {}
    found = keras_net(problem.cell, model, data, net)
    if isinstance(found, str):
        absent["keras"] = found
    else:
        x, y = (v.numpy(force=True) for v in data.train)
        fit = {"batch_size": BATCH, "epochs": 1, "verbose": 0}
        providers = {"keras": lambda: {"loss": found.fit(x, y, **fit)}} | providers
        checks["keras"] = check(found)
    if twin is None:
        absent["torch.nn"] = "torch.nn lacks a layer of the model"
    else:
        providers = {"torch.nn": epoch_of(twin, model, data)} | providers
        checks["torch.nn"] = check(twin)
    return Built(providers, expected, case.bound(expected), absent, checks)


def keras_layers(key: str, keras: Any) -> list[Any] | None:
    """The layers of the same model in Keras; None where it has none."""
    layers = keras.layers
    kinds = {"rnn": layers.SimpleRNN, "lstm": layers.LSTM, "gru": layers.GRU}
    kinds["conv-gru"] = kinds["gru-reset-before"] = layers.GRU
    if key == "wavenet-simple":
        options = {"padding": "causal", "activation": "relu"}
        convs = [layers.Conv1D(UNITS, 2, dilation_rate=d, **options) for d in (1, 2, 4, 8) * 2]
        return [*convs, layers.Conv1D(HORIZON, 1)]
    if key not in kinds:
        return None
    more = {"reset_after": False} if key == "gru-reset-before" else {}
    recurrent = [kinds[key](UNITS, return_sequences=True, **more) for _ in range(2)]
    front = [layers.Conv1D(UNITS, 4, strides=2)] if key == "conv-gru" else []
    return [*front, *recurrent, layers.Dense(HORIZON)]


def keras_net(key: str, model: Model, data: Data, net: nn.Module) -> Any:
    """The model in Keras with the net's weights, compiled; or why there is none."""
    try:
        import keras
    except ImportError as error:
        return f"keras cannot be imported: {error}"
    layers = keras_layers(key, keras)
    if layers is None:
        return "Keras lacks a layer of the model"
    found = keras.Sequential([keras.Input(data.train.x.shape[1:]), *layers])
    recurrent = (keras.layers.SimpleRNN, keras.layers.LSTM, keras.layers.GRU)
    given = [v.detach().cpu() for v in net.parameters()]
    if hasattr(net, "front"):  # parameters come in the order of assignment: make it the layers'
        given = [v.detach().cpu() for part in parts(net) for v in part.parameters()]
    for layer in layers:
        count = 4 if isinstance(layer, recurrent) else 2
        layer.set_weights(keras_weights(layer, given[:count], isinstance(layer, recurrent)))
        given = given[count:]
    found.compile(optimizer=keras.optimizers.Adam(model.lr), loss="mse")
    return found


def parts(net: Any) -> list[nn.Module]:
    """A recurrent forecaster's modules, in the order in which they are called."""
    return [part for part in (net.front, net.recurrent, net.head) if part is not None]


def keras_weights(layer: Any, given: list[Tensor], recurrent: bool) -> list[Any]:
    """A layer's parameters in Keras's layouts."""
    if not recurrent:
        weight, bias = given
        return [weight.permute(*reversed(range(weight.dim()))).numpy(), bias.numpy()]
    units = layer.units
    parts = [list(v.split(units)) for v in given]
    if type(layer).__name__ == "GRU":  # Keras has z before r
        parts = [[z, r, n] for r, z, n in parts]
    ih, hh, b_ih, b_hh = (torch.cat(v) for v in parts)
    both = getattr(layer, "reset_after", False)
    bias = torch.stack([b_ih, b_hh]) if both else b_ih + b_hh
    return [ih.T.numpy(), hh.T.numpy(), bias.numpy()]
