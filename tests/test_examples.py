"""The examples of resets and lengths: what they claim, on small sizes."""

import sys
from pathlib import Path

import pytest
import torch

import rnnkit

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import episodes
import lengths


@pytest.fixture(autouse=True)
def one_thread():
    """The examples set their number of threads, and kernels in the interpreter would be slow."""
    threads = torch.get_num_threads()
    with rnnkit.backend("reference"):
        yield
    torch.set_num_threads(threads)


def test_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "episodes.png"
    report = episodes.main(["--quick", "--figure", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert set(report.differences) == {"output", "final state", "gradients"}
    assert all(value < episodes.TOLERANCE for value in report.differences.values())
    assert all(times.loop > 0 and times.one_call > 0 for times in report.times)
    (resets,), (nothing,) = report.trained["resets"], report.trained["nothing"]
    assert resets.accuracy > 0.9
    assert min(resets.by_age) > 0.8
    # Without the starts a model can do no more than favour the symbols of late.
    assert nothing.accuracy < 0.5
    printed = capsys.readouterr().out
    for label, _ in episodes.HOWS.values():
        assert label in printed


@pytest.mark.parametrize("how", episodes.HOWS)
def test_an_agent_acts_as_it_was_trained(how: str) -> None:
    """Step by step, a model gives what it gives for the window in one call."""
    task = episodes.Task(symbols=3, hidden=5, episode=4, rows=6)
    model = episodes.Recall(task, how).double()
    stream = episodes.make_stream(task, 20, seed=0)
    expected, last = model(stream.symbols, stream.starts)
    state = None
    for t, scores in enumerate(expected):
        found, state = model.step(stream.symbols[t], stream.starts[t], state)
        torch.testing.assert_close(found, scores, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-12)


def test_stream_asks_for_the_first_symbol_of_each_episode() -> None:
    stream = episodes.make_stream(episodes.Task(rows=3, episode=4), 50, seed=0)
    for row in range(3):
        for t in range(50):
            if stream.starts[t, row]:
                start = t
            assert stream.targets[t, row] == stream.symbols[start, row]
            assert stream.ages[t, row] == t - start


def test_loop_takes_its_short_cut_without_starts() -> None:
    rollout = episodes.make_rollout(9, 2, 3, 4, torch.float64)._replace(
        starts=torch.zeros(9, 2, dtype=torch.bool)
    )
    assert all(value < 1e-12 for value in episodes.differences(rollout).values())


def test_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "lengths.png"
    report = lengths.main(["--quick", "--figure", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert set(report.differences) == {"LSTM", "GRU"}
    for differences in report.differences.values():
        assert set(differences) == {"output", "final state", "gradients"}
        assert all(value < lengths.TOLERANCE for value in differences.values())
    (given,), (ignored,) = report.trained[True], report.trained[False]
    # The same rows in a longer batch are the same to a layer that knows the lengths.
    assert len(set(given.accuracy)) == 1
    assert given.accuracy[0] > 2 / lengths.QUARTERS
    assert given.accuracy[-1] > ignored.accuracy[-1]
    printed = capsys.readouterr().out
    for label, _ in lengths.HOWS.values():
        assert label in printed


def test_padding_is_never_read() -> None:
    """The scores with padding that is NaN are, bit for bit, those with any other."""
    task = lengths.Task(steps=12, rows=7, hidden=6)
    model = lengths.Classifier(task, uses_lengths=True)
    scores = []
    for padding in (torch.nan, 0.0, 1e30):
        x, rows, _ = lengths.make_batch(task, 7, torch.Generator().manual_seed(0), padding)
        scores.append(model(x, rows))
    assert scores[0].isfinite().all()
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], rtol=0, atol=0)


def test_bins_hold_every_length() -> None:
    for steps in (16, 48):
        edges = lengths.bin_edges(lengths.Task(steps=steps))
        assert (edges[0], edges[-1]) == (steps // 4, steps + 1)
        assert edges == sorted(set(edges))


@pytest.mark.parametrize("example", [episodes, lengths], ids=["episodes", "lengths"])
def test_wrong_argument_is_named(example, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(["--fast"])
    assert "--fast" in capsys.readouterr().err
