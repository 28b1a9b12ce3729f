"""Times a training epoch of each forecasting model on a CPU: ours, torch.nn's twin, and Keras 3.

    python -m benchmarks.forecasting [--models gru ...] [--series N] [--epochs N] [--out FILE]

All train on the same series in batches of 32 with Adam, as examples/forecasting.py does, and take
turns. Keras runs on its torch backend, if it is installed (`pip install keras`), by `fit` as its
users call it. One JSON object a line is appended to the file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .facts import facts

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
os.environ.setdefault("KERAS_BACKEND", "torch")

from forecasting_data import HORIZON, Data, make_data
from forecasting_models import MODELS, UNITS, Model, build, build_twin
from forecasting_training import BATCH, Trainee, at_steps

Epoch = Callable[[], object]


def of_trainee(net: torch.nn.Module, model: Model, data: Data) -> Epoch:
    trainee, count = Trainee(net, model.lr), len(data.train.x)
    return lambda: trainee.train_epoch(data, torch.randperm(count))


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


def of_keras(key: str, model: Model, data: Data) -> Epoch | None:
    """An epoch by Keras; None where it is not installed or lacks the model."""
    try:
        import keras
    except ImportError:
        return None
    layers = keras_layers(key, keras)
    if layers is None:
        return None
    net = keras.Sequential([keras.Input(data.train.x.shape[1:]), *layers])
    net.compile(optimizer=keras.optimizers.Adam(model.lr), loss="mse")
    x, y = (v.numpy() for v in data.train)
    return lambda: net.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)


def seconds(epoch: Epoch) -> float:
    start = time.perf_counter()
    epoch()
    return time.perf_counter() - start


def measure(key: str, series: int, epochs: int) -> dict[str, Any]:
    """The median seconds of an epoch for every provider, and ratios to ours of each round."""
    model = MODELS[key]
    data = at_steps(make_data(series), model.steps)
    torch.manual_seed(0)
    net = build(model)
    providers: dict[str, Epoch | None] = {"rnnkit": of_trainee(net, model, data)}
    if model.has_twin:
        providers["torch.nn"] = of_trainee(build_twin(model, net), model, data)
    providers["keras"] = of_keras(key, model, data)
    present = {name: epoch for name, epoch in providers.items() if epoch is not None}
    for epoch in present.values():
        epoch()  # the first one also pays for warming up
    rounds = [{name: seconds(epoch) for name, epoch in present.items()} for _ in range(epochs)]
    row: dict[str, Any] = {"suite": "forecasting", "model": key, "series": series}
    for name in present:
        row[f"{name}_s"] = statistics.median(r[name] for r in rounds)
        row[f"{name}_ratio"] = statistics.median(r[name] / r["rnnkit"] for r in rounds)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--series", type=int, default=10_000, help="as many as the example has")
    parser.add_argument("--epochs", type=int, default=3, help="rounds after one that warms up")
    parser.add_argument("--out", type=Path, help="appended to, one JSON object a line")
    args = parser.parse_args()
    print("seconds an epoch, and how many times as long as rnnkit's")
    for key in args.models:
        row = measure(key, args.series, args.epochs)
        names = [name for name in ("rnnkit", "torch.nn", "keras") if f"{name}_s" in row]
        shown = (f"{n} {row[f'{n}_s']:.2f} s ({row[f'{n}_ratio']:.2f})" for n in names)
        print(f"{key:18} {'  '.join(shown)}", flush=True)
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(json.dumps(row | facts(torch.device("cpu"))) + "\n")


if __name__ == "__main__":
    main()
