"""The names of the activations that the operators fuse, and checks that several operators share.

Each backend package has its own table of these functions, `activations.ACTIVATIONS`.
"""

from __future__ import annotations

POINTWISE: tuple[str | None, ...] = (None, "relu", "silu", "tanh")
# van den Oord et al.: "WaveNet", 2016 (arXiv:1609.03499), equation 2: tanh(first half of the
# channels) * sigmoid(second half).
GATED = "gated"
ALL = (*POINTWISE, GATED)


def check_activation(activation: str | None, known: tuple[str | None, ...]) -> None:
    """ValueError unless the activation is one of those."""
    if activation not in known:
        raise ValueError(f"activation must be one of {list(known)}, got {activation!r}")


def parts(activation: str | None) -> int:
    """How many channels an activation takes for each that it gives."""
    return 2 if activation == GATED else 1


def positive(name: str, value: int) -> int:
    """value, or ValueError unless it is an integer of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return value
