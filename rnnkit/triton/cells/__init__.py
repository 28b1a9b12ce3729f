"""The cells' equations for kernels, written independently of the torch ones that judge them.

step(x, r, s, p) -> s' and vjp(x, r, s, p, ds') -> dx, dr, ds, dp, as in `rnnkit.cells.cell`, on
tuples of tiles. They are `triton.jit` functions, which the kernels take as constants.
"""

from typing import Any, NamedTuple

from ...dispatch import decide


class Equations(NamedTuple):
    """A cell's step and vjp as triton.jit functions."""

    step: Any
    vjp: Any


EQUATIONS: dict[str, Equations] = {}


def register(name: str, step: Any, vjp: Any) -> None:
    """Makes the Triton equations of a registered cell known to the kernels."""
    EQUATIONS[name] = Equations(step, vjp)
    decide.cache_clear()


from . import gru, lstm, rnn  # noqa: E402, F401
