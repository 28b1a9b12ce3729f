"""Norms in the CUDA kernels, of rows that several blocks share: what test_cuda_kernels.py, which
has these cells too, does not show."""

import pytest
import torch
from cuda_harness import Fault, emulates, emulator
from problems import Kind, sample
from test_cuda_kernels import (
    DEVICE_NAME,
    SEEDS,
    chosen,
    cuda,
    in_double,
    install,
    largest,
    on,
    pin,
    seed,
    with_defect,
    with_stubs,
)

import rnnkit
from rnnkit import cells
from rnnkit.cuda import plan
from rnnkit.ops.scan import scan

__all__ = ["cuda"]
pytestmark = [] if DEVICE_NAME == "cuda" else [emulates]
# One of each form: of sums, of products, of two products, and within the step.
FORMS = ("rnn_tanh_norm", "gru_norm", "gru_before_norm_gates", "lstm_norm_gates_carry")
EPS = torch.finfo(torch.float).eps


SHARED = [form for form in plan.FORMS if form[1] != "block"]


@pytest.fixture(params=SHARED, ids=lambda form: f"{form[0]} tiles {form[1]}")
def form(request, monkeypatch):
    pin(monkeypatch, plan.H100, request.param)


def drawn(cell, dtype=torch.float, **kind):
    return sample(cell, Kind(**kind), dtype, torch.device(DEVICE_NAME))


@pytest.mark.parametrize("normed", ["rnn_tanh_norm", "gru_norm", "gru_norm_gates"])
def test_a_large_mean_hides_no_small_spread(cuda, form, normed):
    check_large_mean(drawn(normed, sizes={"T": 1, "B": 3, "H": 70}))


def check_large_mean(inputs, mean=1000.0):
    """The error is that of rounding the values; of a mean of squares it would be a thousandfold."""
    with torch.no_grad():
        if inputs.equations.norm.of_sum:
            inputs.x.add_(mean)
        else:
            inputs.s0[..., 0] = 1
            inputs.w[..., 0] += mean
    found, exact = on("cuda", inputs)["output"], in_double(inputs)["output"]
    assert largest(found - exact) < 4 * EPS * mean


@pytest.mark.parametrize("normed", ["rnn_tanh_norm", "lstm_norm"])
def test_more_blocks_than_a_row_has_lanes_for(cuda, monkeypatch, normed):
    """Each lane reads several pairs of blocks, of which the last block is not full."""
    pin(monkeypatch, plan.H100, (1, "L2"))
    inputs = drawn(normed, sizes={"T": 2, "B": 2, "H": 35 * 16 + 3})
    found, exact = on("cuda", inputs), in_double(inputs)
    for name, v in exact.items():
        assert largest(found[name] - v) < 1e-5 * (1 + largest(v)), name


@pytest.mark.parametrize("normed", FORMS)
def test_padding_may_hold_anything(cuda, form, normed):
    inputs = drawn(
        normed, reverse=(False, True), lengths=(3, 0, 4), sizes={"T": 4, "B": 3, "H": 37}
    )
    expected = on("reference", inputs)
    with torch.no_grad():
        inputs.x[3:, 0] = inputs.x[:, 1] = float("nan")
    found = on("cuda", inputs)
    for name, v in expected.items():
        assert largest(found[name] - v) < 1e-5 * (1 + largest(v)), name


@pytest.mark.parametrize("normed", FORMS)
def test_a_zero_state_in_half_precision(cuda, form, normed):
    check_zero_state(drawn(normed, torch.half, resets=True, sizes={"T": 5, "B": 4, "H": 40}))


def check_zero_state(inputs):
    """Its norm has the slope 1 / sqrt(eps), but what was fed nothing adds nothing."""
    with rnnkit.backend("cuda"):
        output, *_ = scan(*inputs)
        given = [inputs.x, inputs.w, inputs.b, inputs.p]
        gradients = torch.autograd.grad(output, given, torch.full_like(output, 500))
    assert all(v.isfinite().all() for v in gradients)


@pytest.mark.parametrize(
    ("base", "norm"),
    [("rnn_tanh", cells.Norm()), ("gru", cells.Norm(of_sum=True)), ("lstm", cells.Norm())],
)
def test_other_norms_are_refused(cuda, monkeypatch, base, norm):
    cell = cells.normed(cells.find(base), norm, "otherwise")
    monkeypatch.setitem(cells.CELLS, cell.name, cell)
    with pytest.raises(RuntimeError, match="has no C\\+\\+ equations"):
        on("cuda", drawn(cell.name))


# A defect, by the text that it replaces in a file of csrc/cuda, and what then stands there.
PLANTED = {
    "no wait for the sums": ("block.h", "exchange.wait(chunk);", ";"),
    "one buffer": (
        "block.h",
        "exchange.row(step, at.chunk, at.column) + layout.sums",
        "exchange.row(0, at.chunk, at.column) + layout.sums",
    ),
    "units that do not exist": (
        "norm.h",
        "exists ? v[g * EACH + i] : 0",
        "exists ? v[g * EACH + i] : 1",
    ),
}


@pytest.mark.skipif(DEVICE_NAME == "cuda", reason="defects are shown by schedules")
@pytest.mark.parametrize("defect", chosen(PLANTED, "no wait for the sums"))
def test_defects_are_found(cuda, pytestconfig, tmp_path, defect):
    """At least one of the schedules shows a defect, and without it none does."""
    inputs = drawn("lstm_norm", sizes={"T": 4, "B": 3, "H": 150})
    expected = on("reference", inputs)
    assert not any(shows(cuda, inputs, expected, k) for k in SEEDS[:5])
    csrc = with_defect(tmp_path, "lstm_norm", *PLANTED[defect])
    broken = emulator(pytestconfig, "norms", with_stubs(csrc))
    install(broken)
    try:
        assert any(shows(broken, inputs, expected, k) for k in SEEDS)
    finally:
        install(cuda)


def shows(emulated, inputs, expected, k):
    """Whether a schedule gives another result than is expected, or none at all."""
    seed(emulated, k)
    try:
        found = on("cuda", inputs)
    except (RuntimeError, Fault):
        return True
    return not all(
        largest(found[name] - v) < 1e-4 * (1 + largest(v)) for name, v in expected.items()
    )
