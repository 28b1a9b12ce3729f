"""The forecasting example: its data, its twins, and its command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import rnnkit

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import forecasting
from forecasting_data import Data, make_data, make_series
from forecasting_models import MODELS, Model, build, build_twin
from forecasting_training import Run, at_steps, train

TWINS = [key for key, model in MODELS.items() if model.has_twin]
RECURRENT_TWINS = [key for key in TWINS if key != "wavenet-simple"]
# How far apart twins may end an epoch.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(autouse=True)
def one_thread():
    """Layers this small only lose by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train_twins(key: str, count: int, dtype: torch.dtype) -> Run:
    return train(MODELS[key], make_data(count, dtype=dtype), epochs=1, seed=42, twin=True)


def assert_twins_agree(run: Run, dtype: torch.dtype) -> None:
    ours, theirs = run.ours.history[-1], run.twin.history[-1]
    for name in ("train", "valid", "last_step"):
        difference = abs(getattr(ours, name) - getattr(theirs, name))
        assert difference < TOLERANCE[dtype], f"{name}: {ours} is not {theirs}"


@DTYPES
@pytest.mark.parametrize("key", TWINS)
def test_twin_ends_a_short_epoch_at_the_same_error(key: str, dtype: torch.dtype) -> None:
    run = train_twins(key, 1000, dtype)
    assert_twins_agree(run, dtype)
    assert run.ours.history[-1].train < 0.25, "nothing was learnt"


@DTYPES
@pytest.mark.parametrize("key", RECURRENT_TWINS)
def test_twin_agrees_when_the_reference_runs(key: str, dtype: torch.dtype) -> None:
    """torch.nn's own kernels may serve the layers by default, and agree with themselves."""
    with rnnkit.backend("reference"):
        run = train_twins(key, 300, dtype)
    assert run.backend == "reference"
    assert_twins_agree(run, dtype)


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize("backend", ["default", "reference"])
@pytest.mark.parametrize("key", TWINS)
def test_twin_ends_a_full_epoch_at_the_same_error(
    key: str, backend: str, dtype: torch.dtype
) -> None:
    if backend == "default":
        run = train_twins(key, 10_000, dtype)
    else:
        with rnnkit.backend(backend):
            run = train_twins(key, 10_000, dtype)
    assert_twins_agree(run, dtype)


@pytest.mark.parametrize("key", TWINS)
def test_twin_is_made_of_torch_layers_only(key: str) -> None:
    ours = build(MODELS[key])
    twin = build_twin(MODELS[key], ours)
    assert any(type(layer).__module__.startswith("rnnkit") for layer in ours.modules())
    assert not any(type(layer).__module__.startswith("rnnkit") for layer in twin.modules())
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_model_forecasts_where_it_has_targets_and_looks_back_only(model: Model) -> None:
    data = at_steps(make_data(20, dtype=torch.float64), model.steps)
    net = build(model).double().eval()
    x = data.train.x.clone()
    before = net(x)
    assert before.shape == data.train.y.shape
    # A change of the last input may only be seen in the last forecast.
    x[:, -1] += 1
    seen = (net(x) - before).abs().amax(dim=(0, 2))
    assert seen[-1] > 1e-6
    assert seen[:-1].max() == 0


def test_training_is_repeatable() -> None:
    first, second = (train_twins("gru", 100, torch.float32) for _ in range(2))
    assert first.ours.history[-1][:3] == second.ours.history[-1][:3]


def test_data_splits() -> None:
    data = make_data()
    assert [len(split.x) for split in data] == [7000, 2000, 1000]
    for split in data:
        assert split.x.shape[1:] == (50, 1)
        assert split.y.shape[1:] == (50, 10)
        assert split.x.dtype == split.y.dtype == torch.float32
        assert max(split.x.abs().max(), split.y.abs().max()) <= 0.75


def test_targets_are_the_next_ten_values() -> None:
    for split in make_data(50):
        for step in range(40):
            torch.testing.assert_close(
                split.y[:, step], split.x[:, step + 1 : step + 11, 0], rtol=0, atol=0
            )
    last = torch.from_numpy(make_series(50, 60)[:35, 50:])
    torch.testing.assert_close(make_data(50).train.y[:, -1], last, rtol=0, atol=0)


def test_data_are_the_published_ones() -> None:
    """Against one series at a time, by the formula, from one stream of random numbers."""
    stream = np.random.RandomState(42).random_sample(4 * 10_000 + 3 * 60)
    t = np.arange(60) / 59
    for i in range(3):
        f1, f2, o1, o2 = stream[i:40_000:10_000]
        u = stream[40_000 + 60 * i :][:60]
        value = 0.5 * np.sin((t - o1) * (10 * f1 + 10)) + 0.2 * np.sin((t - o2) * (20 * f2 + 20))
        value += 0.1 * (u - 0.5)
        np.testing.assert_allclose(make_data().train.x[i, :, 0], value[:50], rtol=0, atol=1e-6)
        np.testing.assert_allclose(make_data().train.y[i, -1], value[50:], rtol=0, atol=1e-6)


def test_data_do_not_move_the_global_generators() -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    make_data(10)
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_command_line_trains_all_models(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    command = [sys.executable, forecasting.__file__, "--out", out, "--twins"]
    command += ["--epochs", "1", "--seeds", "2", "--series", "40"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == [model.title for model in MODELS.values()]
    for row, model in zip(rows, MODELS.values(), strict=True):
        assert model.title in done.stdout
        assert f"{model.title}, 43" in done.stderr, "progress is shown"
        errors = [run["epochs"][-1]["last_step"] for run in row["runs"]]
        assert row["last_step_mse"] == pytest.approx(sum(errors) / 2)
        assert 0 < row["last_step_mse"] < 1
        assert row["backend"]
        assert ("twin_last_step_mse" in row) == model.has_twin
    assert (out / "forecasting.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["new"], "all files are in the out folder"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--models", "lstm", "transformer"], ["transformer", *MODELS]),
        (["--epochs", "0"], ["--epochs", "at least 1", "'0'"]),
        (["--seeds", "two"], ["--seeds", "at least 1", "'two'"]),
        (["--device", "abacus"], ["--device", "'abacus'"]),
    ],
    ids=["model", "epochs", "seeds", "device"],
)
def test_wrong_argument_is_named(
    arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        forecasting.main(arguments)
    message = capsys.readouterr().err
    for part in expected:
        assert part in message


def test_seeds_give_other_weights_and_the_same_data() -> None:
    data: Data = make_data(40)
    runs = [train(MODELS["rnn"], data, epochs=1, seed=seed) for seed in (42, 43)]
    assert runs[0].ours.history[-1].last_step != runs[1].ours.history[-1].last_step
    torch.testing.assert_close(data.train.x, make_data(40).train.x, rtol=0, atol=0)
