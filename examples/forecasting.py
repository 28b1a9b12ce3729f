"""Forecast a series ten steps ahead: train nine models on rnnkit's layers and compare them.

    python examples/forecasting.py --epochs 20 --seeds 3 --twins

prints a table, and writes it as JSON lines beside a figure of forecasts and learning curves.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from forecasting_data import DATA_SEED, Data, make_data
from forecasting_models import MODELS
from forecasting_report import Result, draw, table, write_json
from forecasting_training import Epoch, train


def at_least(least: int) -> Callable[[str], int]:
    """A whole number that is large enough."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            message = f"expected a whole number of at least {least}, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return parse


def usable_device(text: str) -> torch.device:
    """A device that tensors can be made on."""
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot use device {text!r}: {reason}") from None


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--epochs", type=at_least(1), default=20, help="epochs to train each model (default 20)")
    add(
        "--seeds",
        type=at_least(1),
        default=1,
        help="seeds per model; medians are shown (default 1)",
    )
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL",
        help=f"models to train, of {', '.join(MODELS)} (default all)")  # fmt: skip
    add("--device", type=usable_device, default="cpu", help="where to train (default cpu)")
    add("--threads", type=at_least(1), default=1, help="processor threads (default 1)")
    add("--out", type=Path, default=Path("build/forecasting"), help="folder for table and figure")
    add("--twins", action="store_true", help="train each model's torch.nn twin beside it")
    # Fewer series than the 10,000 that the published numbers need, for tests; ten fill every split.
    add("--series", type=at_least(10), default=10_000, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def progress(title: str, epochs: int, live: bool) -> Callable[[Epoch], None]:
    """Shows every epoch, on one line that renews itself if live, else now and then on a new one."""
    done = 0

    def report(epoch: Epoch) -> None:
        nonlocal done
        done += 1
        line = (
            f"{title:21}  epoch {done:{len(str(epochs))}}/{epochs}  loss {epoch.train:.4f}  "
            f"last-step MSE {epoch.last_step:.4f}  {epoch.seconds:.2f} s"
        )
        end = "\n"
        if live:
            # A line that wraps could not be renewed.
            line = "\r\033[K" + line[: shutil.get_terminal_size().columns - 1]
            end = "\n" if done == epochs else ""
        if live or done in (1, epochs) or done % 5 == 0:
            print(line, end=end, file=sys.stderr, flush=True)

    return report


def train_all(args: argparse.Namespace, data: Data) -> list[Result]:
    """Every model asked for, from every seed."""
    results = []
    for key in args.models:
        model, runs = MODELS[key], []
        for seed in range(DATA_SEED, DATA_SEED + args.seeds):
            title = model.title if args.seeds == 1 else f"{model.title}, {seed}"
            report = progress(title, args.epochs, sys.stderr.isatty())
            runs.append(train(model, data, args.epochs, seed, args.twins, report))
        results.append(Result(key, model, runs))
    return results


def main(argv: list[str] | None = None) -> None:
    """Train, print the table, write the files."""
    args = parse(argv)
    # Before the training, so that a folder that cannot be made does not cost its minutes.
    args.out.mkdir(parents=True, exist_ok=True)
    # Layers this small gain nothing from a second thread, and lose much when its core is busy.
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    data = make_data(args.series, args.device)
    results = train_all(args, data)
    seconds = time.perf_counter() - start
    setting = {name: getattr(args, name) for name in ("epochs", "seeds", "series")}
    setting["device"] = str(args.device)
    rows, picture = args.out / "results.jsonl", args.out / "forecasting.png"
    write_json(rows, results, setting)
    draw(picture, results, data)
    print(f"\n{table(results, args.twins)}\n")
    if args.seeds > 1:
        print(f"Medians of {args.seeds} seeds.")
    print(f"Trained in {seconds:.0f} s. Wrote {rows} and {picture}")


if __name__ == "__main__":
    main()
