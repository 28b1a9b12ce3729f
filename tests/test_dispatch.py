"""Which backend runs: chosen, forced or refused with every reason, and told to who asks."""

import os
import re
import subprocess
import sys

import pytest
import torch
from layer_variants import VARIANTS, every_variant, leaves, plain_variant, randn

import rnnkit
from rnnkit import dispatch
from rnnkit.cells import CELLS
from rnnkit.cpu.library import functions
from rnnkit.cuda import library
from rnnkit.ops.sequence import Inputs
from rnnkit.torch_kernels import scan as torch_scan
from rnnkit.triton.fit import choose_form

T, B, I, H = 4, 2, 3, 5  # noqa: E741
NAMES = tuple(dispatch.BACKENDS)
needs_library = pytest.mark.skipif(functions()[0] is None, reason="no native library")


def ran(module, *args, **kwargs):
    """The names of the backends that a call used, in order."""
    with dispatch.recording() as decisions:
        module(*args, **kwargs)
    return [decision.backend for decision in decisions]


def only_torch_and_reference(monkeypatch):
    """Takes away the kernels whose presence depends on the machine."""
    kept = {name: dispatch.BACKENDS[name] for name in ("torch", "reference")}
    monkeypatch.setattr(dispatch, "BACKENDS", kept)
    dispatch.decide.cache_clear()


@pytest.fixture(autouse=True)
def own_choice(monkeypatch):
    """These tests are about dispatch's own choice: whatever the process forces is put aside."""
    monkeypatch.setattr(dispatch, "_forced", None)
    dispatch.decide.cache_clear()
    yield
    dispatch.decide.cache_clear()


@plain_variant
def test_plain_layers_run_on_torch_where_no_kernels_are(variant, monkeypatch):
    only_torch_and_reference(monkeypatch)
    layer, x = variant.layer(I, H, 2, bidirectional=True), randn(T, B, I)
    assert ran(layer, x) == ["torch", "torch"]
    assert ran(variant.one(I, H), x[0]) == ["torch"]


@needs_library
@every_variant
def test_layers_run_on_the_cpu_kernels(variant):
    layer, x = variant.layer(I, H, 2, bidirectional=True), randn(T, B, I)
    assert ran(layer, x) == ["cpu", "cpu"]
    assert ran(variant.one(I, H), x[0]) == ["cpu"]
    assert "cpu" in ran(layer, x, lengths=torch.tensor([4, 1]))


@every_variant
def test_torch_runs_nothing_it_lacks(variant, monkeypatch):
    only_torch_and_reference(monkeypatch)
    layer, x = variant.layer(I, H), randn(T, B, I)
    asked = {"lengths": torch.tensor([4, 1]), "resets": torch.zeros(T, B, dtype=torch.bool)}
    for name, value in asked.items():
        assert "torch" not in ran(layer, x, **{name: value})
    assert "torch" not in ran(layer, x[:0])
    assert ("torch" in ran(layer, x)) == (variant.cell in torch_scan.LAYERS)


@every_variant
def test_forced_reference(variant):
    layer, x = variant.layer(I, H, 2), randn(T, B, I).requires_grad_()
    with rnnkit.backend("reference"), dispatch.recording() as decisions:
        layer(x)[0].sum().backward()
    assert {d.backend for d in decisions} == {"reference"}
    # Two calls of a layer, told once each though their scans decide too; two backward scans.
    assert [d.problem.extras is None for d in decisions] == [False, False, True, True]
    assert all(d.problem.backward for d in decisions)


@every_variant
def test_any_parameter_makes_it_a_training_problem(variant):
    """As where biases alone are tuned, those of any direction."""
    layer, x = variant.layer(I, H, bidirectional=True), randn(T, B, I)
    for _, parameter in layer.requires_grad_(False).named_parameters():
        parameter.requires_grad_(True)
        with dispatch.recording() as decisions:
            layer(x)
        assert decisions[0].problem.backward
        parameter.requires_grad_(False)


REFUSED = {
    "lengths": ({"lengths": torch.tensor([4, 1])}, "torch.nn has no lengths"),
    "resets": ({"resets": torch.zeros(T, B, dtype=torch.bool)}, "torch.nn has no resets"),
}


@pytest.mark.parametrize("asked", REFUSED)
@every_variant
def test_forced_backend_raises_with_every_reason(variant, asked, monkeypatch):
    """Every backend that cannot run the problem is named with its reason; nothing falls back."""
    kwargs, reason = REFUSED[asked]
    layer, x = variant.layer(I, H), randn(T, B, I)
    own = variant.cell in torch_scan.LAYERS
    monkeypatch.setattr(rnnkit.reference.scan, "why_not", lambda problem: "it has the day off")
    with rnnkit.backend("torch"), pytest.raises(RuntimeError) as caught:
        layer(x, **kwargs)
    message = str(caught.value)
    assert message.startswith(f"backend 'torch' cannot run {variant.cell} T=4 B=2 N=1 H=5 float64")
    assert f"torch: {reason if own else f'torch.nn has no cell {variant.cell!r}'}" in message
    assert "reference: it has the day off" in message


FORCE_TRITON = """
import torch, rnnkit
with rnnkit.backend("triton"):
    rnnkit.GRU(3, 5)(torch.ones(4, 2, 3))
"""


def test_forced_triton_raises_on_a_cpu():
    """In the compiled form, its kernels need a GPU."""
    done = python(FORCE_TRITON, TRITON_INTERPRET="0")
    assert done.returncode != 0
    error = done.stderr.split("RuntimeError: backend 'triton' cannot run gru T=4 B=2 N=1 H=5")[1]
    assert "\n  triton: " in error


def test_unknown_name():
    expected = r"unknown backend 'cudnn': expected one of torch, .*reference"
    with pytest.raises(ValueError, match=expected), rnnkit.backend("cudnn"):
        raise AssertionError("entered")
    assert dispatch._forced is None


def test_contexts_nest_and_restore():
    layer, x = rnnkit.GRU(I, H), torch.randn(T, B, I)
    with rnnkit.backend("reference"):
        assert set(ran(layer, x)) == {"reference"}
        with rnnkit.backend("torch"):
            assert ran(layer, x) == ["torch"]
        assert set(ran(layer, x)) == {"reference"}
        with pytest.raises(KeyError), rnnkit.backend("torch"):
            raise KeyError
        assert set(ran(layer, x)) == {"reference"}
    assert "reference" not in ran(layer, x)


def test_recordings_nest():
    """Each collects what runs inside it, and only that."""
    layer, x = rnnkit.LSTM(I, H), torch.randn(T, B, I)
    with dispatch.recording() as outer:
        layer(x)
        with dispatch.recording() as inner:
            layer(x)
            layer(x[:2])
        assert len(outer) == 1
    layer(x)
    assert [d.problem.T for d in outer] == [T]
    assert [d.problem.T for d in inner] == [T, 2]
    (decision,) = outer
    assert (decision.problem.cell, decision.problem.B, decision.problem.H) == ("lstm", B, H)


def test_one_entry_for_each_scan_of_a_layer(monkeypatch):
    """What a layer decides, its scan decides again, and that is told once."""
    only_torch_and_reference(monkeypatch)
    layer, x = rnnkit.LSTM(I, H, 3, peephole=True), torch.randn(T, B, I)
    assert ran(layer, x) == ["reference"] * 3
    with torch.no_grad():
        assert ran(layer, x) == ["reference"] * 3


def test_one_entry_for_each_bare_scan():
    x, w = torch.randn(T, B, 1, 1, H), torch.randn(1, H, H)
    with dispatch.recording() as decisions, rnnkit.backend("reference"):
        for _ in range(3):
            rnnkit.functional.scan(x, w, cell="rnn_tanh")
    assert len(decisions) == 3


def test_explain(monkeypatch, capsys):
    only_torch_and_reference(monkeypatch)
    model = torch.nn.ModuleDict({"a": rnnkit.GRU(I, H), "b": rnnkit.LSTM(I, H, peephole=True)})
    model.forward = lambda x: (model["a"](x), model["b"](x))
    torch.manual_seed(0)
    rnnkit.explain(model, torch.randn(T, B, I))
    assert capsys.readouterr().out.splitlines() == [
        "gru T=4 B=2 N=1 H=5 float32 on cpu: torch",
        "  not reference: comes later in the order of preference",
        "lstm_peephole T=4 B=2 N=1 H=5 float32 on cpu: reference",
        "  not torch: torch.nn has no cell 'lstm_peephole'",
    ]


@pytest.mark.parametrize("reason", [None, "another one is faster"])
def test_explain_compiles_nothing_that_was_not_needed(reason, monkeypatch, capsys):
    kept = {name: dispatch.BACKENDS[name] for name in ("cuda", "reference")}
    monkeypatch.setattr(dispatch, "BACKENDS", kept)
    monkeypatch.setattr(library, "find", None)
    sizes = {"T": T, "B": B, "N": 1, "H": H, "runs": 1, "backward": False}
    problem = dispatch.Problem("lstm", dtype=torch.half, device=torch.device("cuda"), **sizes)
    reasons = (("cuda", reason),) if reason else ()
    decision = dispatch.Decision(problem, "reference", reasons)
    monkeypatch.setattr(dispatch, "_forced", "reference")
    rnnkit.explain(lambda: dispatch.record(decision))
    assert f"  not cuda: {reason or dispatch.UNKNOWN}\n" in capsys.readouterr().out
    norm = on_gpu("layer_norm", M=8, N=1024)
    rnnkit.explain(lambda: dispatch.record(dispatch.Decision(norm, "reference", ())))
    assert "  not cuda: it has no kernels for layer_norm\n" in capsys.readouterr().out


def test_a_forced_backend_is_the_only_one_asked(monkeypatch):
    """Another might compile its kernels to answer."""
    asked = []
    why_not = dispatch.why_not
    monkeypatch.setattr(dispatch, "why_not", lambda *v: asked.append(v[0]) or why_not(*v))
    dispatch.decide.cache_clear()
    with rnnkit.backend("reference"):
        rnnkit.LSTM(I, H)(randn(T, B, I).float())
    assert set(asked) == {"reference"}


def test_explain_names_every_backend(capsys):
    for variant in VARIANTS:
        rnnkit.explain(variant.layer(I, H), randn(T, B, I), lengths=torch.tensor([4, 1]))
        first, *others = capsys.readouterr().out.splitlines()
        notes = ("  triton: one launch", "  cpu: compiled for")
        others = [line for line in others if not line.startswith(notes)]
        used = first.rsplit(": ", 1)[1]
        assert [line.split()[1].rstrip(":") for line in others] == [n for n in NAMES if n != used]
        assert all(len(line.split(": ", 1)[1]) > 10 for line in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_variant
def test_explain_says_the_largest_size(variant, dtype, capsys):
    """Of this variant and dtype: that size is launched once, and one more goes step by step."""
    rnnkit.explain(variant.layer(I, H, dtype=dtype), randn(T, B, I, dtype=dtype))
    note = next(v for v in capsys.readouterr().out.splitlines() if "one launch a sequence" in v)
    sizes = [int(v) for v in re.findall(r"(\d+) (?:forward|backward)", note)]
    assert len(sizes) == 2
    for size, backward in zip(sizes, (False, True), strict=True):
        assert size >= 16
        for H_, resident in ((size, True), (size + 1, False)):
            x = torch.empty(1, 1, 1, CELLS[variant.cell].gates, H_, dtype=dtype, device="meta")
            inputs = Inputs(x, x, *[None] * 7, variant.cell, (False,))
            assert choose_form(inputs, backward).resident == resident, (H_, backward)


def test_a_norm_wider_than_a_tile_is_refused():
    layer = rnnkit.LSTM(1, 2049, layer_norm=True)
    with (
        rnnkit.backend("triton"),
        pytest.raises(RuntimeError, match=r"H = 2049: the norm in the step .* at most 2048"),
    ):
        layer(torch.zeros(1, 1, 1))


def test_explain_changes_nothing():
    layer, x = rnnkit.LSTM(I, H, 2, dropout=0.5), torch.randn(T, B, I).requires_grad_()
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    rnnkit.explain(layer, x)
    assert torch.equal(torch.rand(()), expected)
    assert x.grad is None and layer.training
    assert dispatch._records is None


def python(code, **environment):
    """Runs Python code in a process of its own."""
    env = {k: v for k, v in os.environ.items() if k != "RNNKIT_BACKEND"} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


REPORT = """
import torch, rnnkit
layer, x = rnnkit.LSTM(3, 5), torch.ones(4, 2, 3)
with rnnkit.dispatch.recording() as decisions:
    layer(x)[0].sum().backward()
print(*sorted({d.backend for d in decisions}))
"""


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_environment_forces(name):
    done = python(REPORT, RNNKIT_BACKEND=name)
    assert (done.returncode, done.stdout.split()) == (0, [name]), done.stderr


def test_environment_names_no_backend():
    done = python(REPORT, RNNKIT_BACKEND="cudnn")
    assert done.returncode != 0
    assert "ValueError: unknown backend 'cudnn': expected one of torch" in done.stderr


HIDDEN = """
import sys
sys.modules["triton"] = None
import torch, rnnkit
for layer in (rnnkit.RNN, rnnkit.LSTM, rnnkit.GRU):
    layer, x = layer(3, 5, 2, bidirectional=True), torch.randn(4, 2, 3)
    layer(x, lengths=torch.tensor([4, 2]))[0].sum().backward()
    rnnkit.explain(layer, x, lengths=torch.tensor([4, 2]))
assert not [name for name in sys.modules if name.startswith("triton.")]
"""


def test_import_without_triton():
    """Everything runs, and explain says what is missing."""
    done = python(HIDDEN)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.endswith((": cpu", ": reference")) for line in lines) == 6
    assert sum("not triton: triton cannot be imported" in line for line in lines) == 6


def test_results_do_not_depend_on_who_asks():
    """Recording and forcing the backend that runs anyway change no bit."""
    layer, x = rnnkit.GRU(I, H), torch.randn(T, B, I)
    expected = leaves(layer(x))
    (name,) = ran(layer, x)
    with dispatch.recording(), rnnkit.backend(name):
        assert all(torch.equal(a, b) for a, b in zip(leaves(layer(x)), expected, strict=True))


def on_gpu(operator, activation=None, extras=(), dtype=torch.bfloat16, **sizes):
    return dispatch.LayerProblem(
        operator, tuple(sizes.items()), activation, dtype, torch.device("cuda"), extras=extras
    )


@pytest.mark.parametrize(
    "problem, faster",
    [
        (on_gpu("layer_norm", M=8, N=1024), True),
        (on_gpu("layer_norm", M=8, N=4096), False),
        (on_gpu("layer_norm", dtype=torch.float32, M=8, N=1024), False),
        (on_gpu("causal_conv1d", dtype=torch.float32, C=256, groups=1), False),
        (on_gpu("layer_norm", "silu", M=8, N=1024), False),
        (on_gpu("layer_norm", extras=("residual",), M=8, N=1024), False),
        (on_gpu("causal_conv1d", C=256, groups=1), True),
        (on_gpu("causal_conv1d", C=256, groups=2), False),
        (on_gpu("wavenet", C=128), False),
        (on_gpu("wavenet", C=256), True),
    ],
    ids=str,
)
def test_torch_comes_first_where_it_was_measured_faster_on_a_gpu(problem, faster):
    assert (dispatch.slower("torch", problem) is None) == faster


def test_autocast_is_asked_as_any_trace_can(monkeypatch):
    """torch 2.11's compiler cannot trace the question whether a device has autocast."""
    cpu, meta = torch.device("cpu"), torch.device("meta")
    with torch.autocast("cpu", torch.bfloat16), monkeypatch.context() as patch:
        patch.setattr(torch._C, "_is_autocast_available", None)
        assert dispatch.autocasts(cpu)
    assert not dispatch.autocasts(cpu) and not dispatch.autocasts(meta)
