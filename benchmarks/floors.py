"""What a call computes and moves, and the time that no kernel can go below (all derived)."""

from __future__ import annotations

from rnnkit.cells import find

from .rows import Row

# By (B, H): microseconds of a step of a good LSTM of 16 bits on an H100, forward and backward.
FLOORS = {
    (64, 20): (0.18, 0.23),
    (16, 128): (0.43, 0.46),
    (64, 256): (0.67, 0.81),
    (64, 512): (1.21, 1.56),
    (64, 1024): (2.5, 4.0),
    (256, 512): (2.2, 2.9),
}
SHORT = ("bf16", "fp16")
BYTES = dict.fromkeys(SHORT, 2) | {"fp32": 4, "tf32": 4, "fp64": 8}
# Tensors of the input's size that a layer norm reads and writes: x and y; in backward x, dy and dx.
NORM_PASSES = {"inference": 2, "forward": 2, "forward+backward": 5}


def operations(row: Row) -> float | None:
    """Multiplications and additions of a call's matrix products; None where they are not known.

    Backward has two products for each of forward. Lengths leave out steps, differently by provider.
    """
    times = 3 if row["mode"] == "forward+backward" else 1
    if row["suite"] == "conv":
        B, T, C, K = (row[name] for name in "BTCK")
        weights = {"CausalConv1d": C * C * K, "WaveNetBlock": 2 * C * C * K + 2 * C * C}
        return 2.0 * B * T * weights.get(row["cell"], C * K) * times
    if row["suite"] == "rnn" and row["form"] != "lengths":
        T, B, H = (row[name] for name in "TBH")
        # The second layer's input is both directions of the first; each has a recurrent part, too.
        features = [H] * 2 + [2 * H] * 2 if row["form"] else [H]
        weights_of_all = find(row["cell"]).gates * H * sum(n + H for n in features)
        return 2.0 * T * B * weights_of_all * times
    return None


def moved(row: Row) -> float | None:
    """Bytes that a layer norm must read and write, in a call."""
    if row["suite"] != "norm":
        return None
    return float(NORM_PASSES[row["mode"]] * row["M"] * row["N"] * BYTES[row["dtype"]])


def floor(row: Row) -> float | None:
    """The least time of a call in ms, None where none is known.

    On a CPU: the products at the speed that the largest ones reach there. On an H100: the steps.
    """
    if row.get("gflops"):
        products = operations(row)
        return None if products is None else products / (row["gflops"] * 1e6)
    known = FLOORS.get((row.get("B", 0), row.get("H", 0)))
    if known is None or row["cell"] != "lstm" or row["dtype"] not in SHORT or row["form"]:
        return None
    a_step = known[0] + known[1] * (row["mode"] == "forward+backward")
    return row["T"] * a_step / 1e3 if "H100" in row["device"] else None
