"""What no kernel can go below, in microseconds a step (derived)."""

from __future__ import annotations

from rnnkit.cells import find

from .rows import Row

# By (B, H): of a step of a good LSTM of 16 bits on an H100, forward and backward.
FLOORS = {
    (64, 20): (0.18, 0.23),
    (16, 128): (0.43, 0.46),
    (64, 256): (0.67, 0.81),
    (64, 512): (1.21, 1.56),
    (64, 1024): (2.5, 4.0),
    (256, 512): (2.2, 2.9),
}
SHORT = ("bf16", "fp16")


def floor(row: Row) -> float | None:
    """The floor of a stored row of a recurrent layer; None where none is known.

    On a CPU: the products at the speed that the largest ones reach there.
    """
    backward = row["mode"] == "forward+backward"
    if row.get("gflops"):
        cell, B, H = find(row["cell"]), row["B"], row["H"]
        products = 2 * B * cell.gates * H * (H + H) * (3 if backward else 1)
        return products / (row["gflops"] * 1e3)
    known = FLOORS.get((row["B"], row["H"]))
    if known is None or row["cell"] != "lstm" or row["dtype"] not in SHORT:
        return None
    return known[0] + known[1] * backward if "H100" in row["device"] else None
