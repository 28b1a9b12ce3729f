"""The loaders in docs/cells.md give what the other library's own equations give."""

from pathlib import Path

import pages
import pytest
import torch
import torch.nn.functional as F
from layer_variants import close, randn

T, B, I, H = 5, 3, 4, 6  # noqa: E741
s, tanh = torch.sigmoid, torch.tanh
NAMES = pages.run(Path(__file__).parent.parent / "docs" / "cells.md")

# Kernels as Keras and its likes have them, (inputs, gates), and biases.
K, R, BIAS = randn(I, 4 * H, seed=1), randn(H, 4 * H, seed=2), randn(4 * H, seed=3)
GAINS, SHIFTS = randn(3, 4 * H, seed=4), randn(3, 4 * H, seed=5)
BIAS_GRU = randn(2, 3 * H, seed=6)
ONNX = {"W": randn(1, 4 * H, I), "R": randn(1, 4 * H, H, seed=7), "B": randn(1, 8 * H, seed=8)}
PEEPHOLE = randn(1, 3 * H, seed=9)


def norm(v, k, eps=1e-5, bias=True):
    """The k-th of three layer norms."""
    size = v.shape[-1]
    return F.layer_norm(v, (size,), GAINS[k, :size], SHIFTS[k, :size] if bias else None, eps)


def keras_lstm(x, h, c):
    i, f, g, o = (x @ K + h @ R + BIAS).chunk(4, -1)
    c = s(f) * c + s(i) * tanh(g)
    return s(o) * tanh(c), c


def keras_gru(reset_after):
    def step(x, h):
        kernel, recurrent = K[:, : 3 * H], R[:, : 3 * H]
        a = x @ kernel + BIAS_GRU[0]
        v = h @ recurrent + (BIAS_GRU[1] if reset_after else 0)
        z, r = s(a[:, :H] + v[:, :H]), s(a[:, H : 2 * H] + v[:, H : 2 * H])
        late = r * v[:, 2 * H :] if reset_after else (r * h) @ recurrent[:, 2 * H :]
        return (z * h + (1 - z) * tanh(a[:, 2 * H :] + late),)

    return step


def onnx_lstm(x, h, c):
    b = ONNX["B"][0]
    i, o, f, g = (x @ ONNX["W"][0].T + h @ ONNX["R"][0].T + b[: 4 * H] + b[4 * H :]).chunk(4, -1)
    p_i, p_o, p_f = PEEPHOLE[0].chunk(3)
    i, f = s(i + p_i * c), s(f + p_f * c)
    c = f * c + i * tanh(g)
    return s(o + p_o * c) * tanh(c), c


def onnx_gru(linear_before_reset):
    def step(x, h):
        w, r = ONNX["W"][0, : 3 * H].chunk(3), ONNX["R"][0, : 3 * H].chunk(3)
        b = ONNX["B"][0, : 6 * H].chunk(6)
        z, reset = (s(x @ w[k].T + h @ r[k].T + b[k] + b[k + 3]) for k in (0, 1))
        late = reset * (h @ r[2].T + b[5]) if linear_before_reset else (reset * h) @ r[2].T + b[5]
        return ((1 - z) * tanh(x @ w[2].T + b[2] + late) + z * h,)

    return step


def fastrnns(x, h, c):
    i, f, g, o = (norm(x @ K, 0) + norm(h @ R, 1)).chunk(4, -1)
    c = norm(s(f) * c + s(i) * tanh(g), 2)
    return s(o) * tanh(c), c


def tfa(x, h, c):
    i, f, g, o = (norm(x @ K, 0, 1e-3) + norm(h @ R, 1, 1e-3) + BIAS).chunk(4, -1)
    c = norm(s(f) * c + s(i) * tanh(g), 2, 1e-3)
    return s(o) * tanh(c), c


def haste(x, h, c):
    i, g, f, o = (norm(x @ K, 0, bias=False) + norm(h @ R, 1, bias=False) + BIAS).chunk(4, -1)
    c = s(f) * c + s(i) * tanh(g)
    return s(o) * tanh(norm(c, 2)), c


FASTRNNS = {"weight_ih": K.T, "weight_hh": R.T}
for k, name in enumerate("ihc"):
    size = H if name == "c" else 4 * H
    FASTRNNS[f"layernorm_{name}.weight"] = GAINS[k, :size]
    FASTRNNS[f"layernorm_{name}.bias"] = SHIFTS[k, :size]
NORMS = [(GAINS[k, :size], SHIFTS[k, :size]) for k, size in enumerate((4 * H, 4 * H, H))]
THREE = {"W": ONNX["W"][:, : 3 * H], "R": ONNX["R"][:, : 3 * H], "B": ONNX["B"][:, : 6 * H]}
KERNELS = (K[:, : 3 * H], R[:, : 3 * H])
# Each loader: its arguments, the library's step, and how many states that has.
LOADERS = {
    "from_keras_lstm": ((K, R, BIAS), keras_lstm, 2),
    "from_keras_gru": ((*KERNELS, BIAS_GRU), keras_gru(True), 1),
    "from_keras_gru reset before": ((*KERNELS, BIAS_GRU[0]), keras_gru(False), 1),
    "from_onnx_lstm": ((*ONNX.values(), PEEPHOLE), onnx_lstm, 2),
    "from_onnx_gru": (tuple(THREE.values()), onnx_gru(0), 1),
    "from_onnx_gru linear before reset": ((*THREE.values(), 1), onnx_gru(1), 1),
    "from_fastrnns": ((FASTRNNS,), fastrnns, 2),
    "from_tfa": ((K, R, BIAS, *NORMS), tfa, 2),
    "from_haste_layer_norm_lstm": ((K, R, BIAS, GAINS[:2], GAINS[2, :H], SHIFTS[2, :H]), haste, 2),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loader(name):
    arguments, step, states = LOADERS[name]
    layer, x = NAMES[name.split()[0]](*arguments), randn(T, B, I)
    state, outputs = (torch.zeros(B, H, dtype=torch.double),) * states, []
    for x_t in x:
        state = step(x_t, *state)
        outputs.append(state[0])
    found = layer(x.transpose(0, 1))[0].transpose(0, 1) if layer.batch_first else layer(x)[0]
    close(found, torch.stack(outputs), 1e-12, name)
