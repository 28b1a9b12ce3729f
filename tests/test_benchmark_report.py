"""The report shows what is stored, and says when it no longer does."""

from __future__ import annotations

import json

import pytest

from benchmarks import figures, report, rows
from benchmarks.floors import floor, moved, operations
from benchmarks.problem import IN_GRAPH

PLAIN = dict(suite="rnn", cell="gru", mode="forward+backward", dtype="fp32", form="", failure=None)
PLAIN |= dict(T=50, B=32, H=64, baseline="torch.nn", noisy=False, ratios=[1.0], error=1e-7)
PLAIN |= dict(error_bound=1e-6, first_call_s=0.1, saved_mib=1.0, device="a processor", threads=2)
PLAIN |= dict(torch="2", commit="c0ffee", date="2026-01-01T00:00:00", gflops=100.0)


def stored(provider, ms, **more):
    times = dict(p20_ms=ms, p50_ms=ms, p80_ms=ms, us_per_step=ms * 20, ratio=ms / 4.0)
    return PLAIN | times | {"provider": provider} | more


ROWS = [
    stored("torch.nn", 4.0, absent={"rnnkit triton": "it needs a GPU"}),
    stored("rnnkit", 1.0, noisy=True),
    stored("rnnkit reference", 8.0),
    stored("torch.nn", 8.0, H=128),
    stored("rnnkit", 4.0, H=128),
]


@pytest.fixture
def place(tmp_path):
    """A folder with a README and results, and the report's arguments for it."""
    (tmp_path / "README.md").write_text("before\n" + "\nold\n".join(report.MARKS) + "\nafter\n")
    (tmp_path / "results").mkdir()
    write(tmp_path, ROWS)
    return tmp_path


def write(place, found, name="cpu"):
    lines = [json.dumps(row) + "\n" for row in found]
    (place / "results" / f"{name}.jsonl").write_text("".join(lines))


def call(place, *more):
    return report.main(["--root", str(place), "--results", str(place / "results"), *more])


def test_a_report_holds_until_something_changes(place, capsys):
    assert call(place, "--check") == 1
    assert "README.md is stale: python -m benchmarks report" in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    assert call(place) == 0 and call(place, "--check") == 0
    assert capsys.readouterr().err == ""
    write(place, [*ROWS, stored("rnnkit", 2.0, date="2026-01-02T00:00:00")])
    assert call(place, "--check") == 1
    said = capsys.readouterr().err
    for name in ("README.md", "benchmarks.md", "cpu-ratio.png", "cpu-step.png", "cpu-memory.png"):
        assert f"{name} is stale" in said
    assert call(place) == 0 and call(place, "--check") == 0


@pytest.mark.parametrize(
    "name", ["README.md", "docs/benchmarks.md", "docs/benchmarks-cpu-step.png"]
)
def test_every_file_is_checked(name, place, capsys):
    pytest.importorskip("matplotlib")
    assert call(place) == 0
    path = place / name
    text = path.read_bytes()
    path.write_bytes(b"another picture" if name.endswith("png") else text.replace(b"4", b"5"))
    assert call(place, "--check") == 1
    assert capsys.readouterr().err == f"{path} is stale: python -m benchmarks report\n"


def test_the_readme_says_what_is_stored(place):
    found = report.results(place / "results")
    text = "\n".join(report.section(found))
    assert "| gru | forward+backward | fp32 | 4 | 8 | 1? | 4.00 x torch.nn |" in text
    assert "a processor, 2 threads" in text and "128" not in text
    assert "GPU times have not been measured yet" in text
    page = report.page(found)
    assert "rnnkit triton: it needs a GPU" in page and "0.25 noisy" in page and "H=128" in page
    write(place, [stored("torch.nn", 4.0, cuda="13", T=256, B=64, H=256)], "a-gpu")
    text = "\n".join(report.section(report.results(place / "results")))
    assert "GPU times have not" not in text


def test_a_speed_is_of_calls_without_a_graph(place):
    times = {"torch.nn": 4.0, "rnnkit": 1.0, f"torch.nn{IN_GRAPH}": 0.5, f"rnnkit{IN_GRAPH}": 0.1}
    write(place, [stored(provider, time) for provider, time in times.items()])
    text = "\n".join(report.section(report.results(place / "results")))
    assert "fp32 | 4 | 1 | 0.5 | 0.1 | 4.00 x torch.nn |" in text


def test_failures_and_other_machines(place):
    failed = dict(p20_ms=None, p50_ms=None, p80_ms=None, us_per_step=None, ratio=None, ratios=None)
    failed |= dict(failure="error 1.0e-01 of output is above 1.0e-06", error=0.1, date="2")
    write(place, [*ROWS, stored("torch.nn", 4.0, date="2"), stored("rnnkit", 1.0) | failed])
    found = report.results(place / "results")
    assert "| 4 | failed | - |" in "\n".join(report.section(found))
    assert "error 1.0e-01 of output is above" in report.page(found)
    write(place, [*ROWS, stored("torch.nn", 7.0, device="another")])
    assert [row["device"] for row in report.results(place / "results")["cpu"]] == ["another"]


def test_only_the_last_run_of_a_problem_counts():
    again = [row | dict(date="2026-01-02T00:00:00") for row in ROWS[:2]]
    last = rows.latest([*ROWS, *again])
    assert list(last[rows.key(ROWS[0])]) == ["torch.nn", "rnnkit"]
    assert len(last) == 2


def test_old_rows_are_read_as_new_ones(tmp_path):
    old = {k: v for k, v in PLAIN.items() if k not in ("suite", "form", "noisy", "baseline")}
    old |= dict(cell="RNN", provider="rnnkit", ratios=[1.0, 1.5, 2.0, 2.5, 3.0], ratio=2.0)
    (tmp_path / "cpu.jsonl").write_text(json.dumps(old) + "\n")
    (row,) = rows.read(tmp_path / "cpu.jsonl")
    assert (row["suite"], row["cell"], row["form"], row["noisy"]) == ("rnn", "rnn_tanh", "", True)


def test_figures_show_the_rows():
    ratio, step, memory = figures.figures("cpu", ROWS)
    by_h = ratio.panels[0]
    assert (by_h.across, by_h.ticks, by_h.series) == ("H", ["64", "128"], {"gru": [0.25, 1.0]})
    assert len(ratio.panels) == 1, "the others have a single tick"
    (panel,) = step.panels
    assert panel.ticks == ["50,32,64", "50,32,128"]
    assert panel.series["torch.nn"] == [80.0, 160.0]
    assert panel.series["rnnkit reference"] == [160.0, None]
    # 2 * B * G * H * (H + H) products and sums, three times, at 100 GFLOP/s.
    assert panel.series["floor"][0] == pytest.approx(2 * 32 * 3 * 64 * 128 * 3 / 1e5)
    assert memory.panels[0].series["rnnkit"] == [1.0]


def test_floors_of_a_gpu_are_the_derived_ones():
    row = stored("rnnkit", 1.0, cell="lstm", dtype="bf16", B=64, H=256, device="NVIDIA H100 80GB")
    del row["gflops"]
    assert floor(row) == pytest.approx(50 * (0.67 + 0.81) / 1e3)
    assert floor(row | dict(mode="inference")) == pytest.approx(50 * 0.67 / 1e3)
    for other in (dict(dtype="fp32"), dict(cell="gru"), dict(form="lengths"), dict(device="A100")):
        assert floor(row | other) is None


def test_the_page_counts_what_a_call_does(place):
    """Sizes small enough to count by hand."""
    layer = dict(T=2, B=3, H=5)
    # 3 gates; each direction of the first layer sees 5 + 5 units, of the second 10 + 5.
    assert operations(stored("rnnkit", 1.0, **layer)) == 2 * 2 * 3 * (3 * 5 * 10) * 3
    deep = stored("rnnkit", 1.0, **layer, form="2 layers, bidirectional")
    assert operations(deep) == 2 * 2 * 3 * (3 * 5 * (10 + 10 + 15 + 15)) * 3
    assert operations(deep | dict(form="lengths")) is None
    conv = dict(suite="conv", cell="CausalConv1d", mode="inference", B=3, T=2, C=5, K=4)
    assert operations(conv) == 2 * 3 * 2 * 5 * 5 * 4
    assert operations(conv | dict(cell="depthwise CausalConv1d")) == 2 * 3 * 2 * 5 * 4
    assert operations(conv | dict(cell="WaveNetBlock")) == 2 * 3 * 2 * (10 * 5 * 4 + 2 * 25)
    norm = dict(suite="norm", cell="LayerNorm", dtype="bf16", M=1000, N=1000, form=None, H=None)
    rows_of = [stored("rnnkit", 1.0, **norm), stored("rnnkit", 1.0, **norm, mode="inference")]
    assert [moved(row) for row in rows_of] == [5 * 2e6, 2 * 2e6]
    write(place, [*ROWS, *rows_of])
    page = report.page(report.results(place / "results"))
    # 2 * 50 * 32 * 3 * 64 * 128 * 3 operations in 4 ms: 59 of 100 GFLOP/s.
    assert "| torch.nn | 4 / 4 / 4 | 1.00 | 80 | 59 | 59% | 1 |" in page
    assert "| 1 / 1 / 1 | 0.25 | 20 | 10 | 1 |" in page
    heads = [line for line in page.splitlines() if line.startswith("| problem")]
    assert ["GFLOP/s" in head for head in heads] == [True, False]
    assert ["GB/s" in head for head in heads] == [False, True]


def test_a_run_of_some_providers_leaves_the_others_rows():
    first = [stored("torch.nn", 4.0), stored("rnnkit", 2.0), stored("rnnkit reference", 8.0)]
    some = [
        stored(name, time, date="2", asked=["rnnkit"])
        for name, time in (("torch.nn", 3.0), ("rnnkit", 1.0))
    ]
    (found,) = rows.latest([*first, *some]).values()
    assert {name: row["p50_ms"] for name, row in found.items()} == {
        "torch.nn": 3.0, "rnnkit": 1.0, "rnnkit reference": 8.0,
    }  # fmt: skip
    assert report.times(found) == "3.00 x torch.nn"
    (found,) = rows.latest([*first, *some, stored("torch.nn", 5.0, date="3")]).values()
    assert list(found) == ["torch.nn"]
