"""The cells' equations for kernels, written independently of the torch ones that judge them.

step(x, r, s, p, u) -> s' and vjp(x, r, s, p, ds', u) -> dx, dr, ds, dp, as in `rnnkit.cells.cell`,
on tuples of tiles; `rnnkit.triton.norm` explains u. They are `triton.jit` functions, which the
kernels take as constants.
"""

from typing import Any, NamedTuple

from ...cells import find
from ...dispatch import decide


class Equations(NamedTuple):
    """A cell's step and vjp as triton.jit functions, and those of its inner step if it has one."""

    step: Any
    vjp: Any
    inner_step: Any = None
    inner_vjp: Any = None


EQUATIONS: dict[str, Equations] = {}


def register(name: str, *equations: Any) -> None:
    """Makes the Triton equations of a registered cell known to the kernels."""
    EQUATIONS[name] = Equations(*equations)
    decide.cache_clear()


def equations(name: str) -> Equations | None:
    """The equations of the cell of that name, if there are any."""
    return EQUATIONS.get(find(name).kernel or name)


from . import gru, lstm, rnn  # noqa: E402, F401
