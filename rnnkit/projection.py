"""From a layer's weights and input to the arguments of its scan: all that is parallel in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .cells import Cell
from .cells.norm import normalise
from .ops.sequence import Inputs, backward_groups, fresh, starts

if TYPE_CHECKING:
    from .ops.layer import Whole

Tensors = tuple[Tensor, ...]


class Weights(NamedTuple):
    """The parameters of one direction of one layer, in torch.nn's shapes.

    ih (G * H, I), hh (G * H, H) or, in blocks on its diagonal, (G * H, H / heads), b_ih and b_hh
    (G * H) or None, hr (P, H) for a projection or None, and the cell's own parameters, each
    (rows * H). Of a cell with a norm: its bias, and gain and bias of the norm of the input's part
    if it has one, each (G * H) or None.
    """

    ih: Tensor
    hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    hr: Tensor | None = None
    own: Tensors = ()
    norm_ih_weight: Tensor | None = None
    norm_ih_bias: Tensor | None = None
    norm_bias: Tensor | None = None

    @property
    def all(self) -> tuple[Tensor | None, ...]:
        """Each tensor, those of `own` among them."""
        return *self[:5], *self.own, *self[6:]

    def heads(self, cell: Cell) -> int:
        """How many blocks the recurrent weights have on their diagonal."""
        return 1 if self.hr is not None else self.ih.shape[0] // cell.gates // self.hh.shape[1]


class Noise(NamedTuple):
    """What regularises the recurrence: the zoneout rates of its first states, and d of the scan."""

    zoneout: tuple[float, ...] = ()
    dropout: Tensor | None = None
    training: bool = False


def grouped(tensors: Sequence[Tensor | None], count: int, heads: int) -> Tensor | None:
    """(D * heads, count, H / heads, ...) of each direction's (count * H, ...); None for none.

    Without a copy where there is one direction of one head.
    """
    parts = [v.unflatten(0, (count, heads, -1)).transpose(0, 1) for v in tensors if v is not None]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def stacked(tensors: Sequence[Tensor | None], count: int, heads: int) -> Tensor | None:
    """(D * heads, count * H / heads, ...): `grouped` with the gates and units in one dimension.

    The only one there may be comes as it is, without the first dimension.
    """
    if heads > 1:
        found = grouped(tensors, count, heads)
        return None if found is None else found.flatten(1, 2)
    if len(tensors) == 1:
        return tensors[0]
    present = [v for v in tensors if v is not None]
    return torch.stack(present) if present else None


def total(*tensors: Tensor | None) -> Tensor | None:
    """The sum of those that are there."""
    present = [v for v in tensors if v is not None]
    return sum(present[1:], present[0]) if present else None


def cast(v: Tensor, dtype: torch.dtype) -> Tensor:
    return v if v.dtype == dtype else v.to(dtype)


def prepare(
    x: Tensor,
    b: Tensor | None,
    state: Tensors | None,
    weights: Sequence[Weights],
    cell: Cell,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    resets: Tensor | None,
    noise: Noise,
) -> tuple[Inputs, Tensor | None]:
    """The arguments of the scan, and the projected h0 if there is one; x and b are `project`'s.

    The weights and biases may lack the dimension of the groups, if there is one: see `with_groups`.
    """
    heads = weights[0].heads(cell)
    N = len(weights) * heads
    hh = stacked([w.hh if w.hr is None else w.hh @ w.hr for w in weights], cell.gates, heads)
    own = [
        grouped([w.own[k] for w in weights], parameter.rows, heads)
        for k, parameter in enumerate(cell.parameters)
    ]
    assert hh is not None
    inputs = Inputs(
        x=x,
        # The cast is all of autocast: everything follows the dtype that the projection produced.
        w=cast(hh, x.dtype),
        b=None if b is None else cast(b, x.dtype),
        s0=None,
        p=torch.cat([v for v in own if v is not None], 1).to(x.dtype) if own else None,
        m=masks(x, noise),
        d=noise.dropout,
        lengths=None if lengths is None else lengths[:, None].expand(-1, N),
        resets=None if resets is None else resets[..., None].expand(-1, -1, N),
        cell=cell.name,
        reverse=tuple(reverse),
    )
    if state is None:
        return inputs, None
    h0 = None
    if weights[0].hr is not None:
        h0, state = state[0], (torch.zeros_like(state[1]), *state[1:])
        inputs = inject(inputs, torch.stack([w.hh for w in weights]), h0)
    s0 = torch.stack(state).transpose(1, 2).unflatten(-1, (heads, -1)).flatten(2, 3)
    return inputs._replace(s0=s0.to(x.dtype)), h0


def with_groups(inputs: Inputs, x: Tensor | None = None) -> Inputs:
    """The inputs with the weights and biases in full, as the operator takes them, and x, if given,
    in the place of theirs.
    """
    w, b = inputs.w, inputs.b
    w = w.unsqueeze(0) if w.dim() == 2 else w
    b = b.unsqueeze(0) if b is not None and b.dim() == 1 else b
    return Inputs(inputs.x if x is None else x, w, b, *inputs[3:])


def check_own(weights: Sequence[Weights], cell: Cell) -> None:
    """Raises unless all weights bring the cell's own parameters."""
    for k, w in enumerate(weights):
        if len(w.own) != len(cell.parameters):
            names = [parameter.name for parameter in cell.parameters]
            expected = f"{len(names)} ({', '.join(names)})" if names else "none"
            raise ValueError(
                f"weights[{k}].own: cell {cell.name!r} has {expected}, got {len(w.own)} tensors"
            )


class Projection(NamedTuple):
    """How x comes of the input: x = input @ ih.T + b_ih, or LN(input @ ih.T) * gain + b_ih.

    input (T, B, I), ih (N, G * H, I), b_ih and gain (N, G * H); these three may lack the dimension
    of the groups, as of `stacked`.
    """

    input: Tensor
    ih: Tensor
    b_ih: Tensor | None
    gain: Tensor | None

    def x(self, cell: Cell, shape: Sequence[int]) -> Tensor:
        """x of that shape, by torch's operations."""
        bias = None if self.b_ih is None else self.b_ih.flatten()
        plain = None if self.gain is not None else bias
        x = torch.nn.functional.linear(self.input, self.ih.flatten(0, -2), plain).view(shape)
        if self.gain is None or cell.norm is None:
            return x
        x = normalise_x(x, cell) * self.gain.view(shape[2:])
        return x if bias is None else x + bias.view(shape[2:])


def normalise_x(x: Tensor, cell: Cell) -> Tensor:
    """The norm of the input's part, over all gates of a group or over each."""
    assert cell.norm is not None
    over = x.shape[-1:] if cell.norm.per_gate else x.shape[-2:]
    return torch.nn.functional.layer_norm(x, over, eps=cell.eps)


def projection_of(
    input: Tensor,
    weights: Sequence[Weights],
    cell: Cell,
    whole: Whole,
) -> tuple[Projection, Tensor, Tensor | None] | None:
    """The projection, an empty x and b of the scan; None where x is not made so.

    What `project` does by torch's operations, for a backend that does it by itself.
    """
    G, norm, heads = cell.gates, cell.norm, weights[0].heads(cell)
    if any(w.hr is not None or w.ih.dtype != w.hh.dtype for w in weights):
        return None
    b_ih, b, gains = [w.b_ih for w in weights], [w.b_hh for w in weights], None
    if norm is not None and norm.of_sum:
        b_ih = [total(w.b_ih, w.b_hh) for w in weights]
        b = [w.norm_bias for w in weights]
    elif norm is not None:
        gains = [w.norm_ih_weight for w in weights]
        if None in gains or not whole.norms:
            return None
        b_ih = [total(w.norm_ih_bias, w.b_ih) for w in weights]
        b = [total(w.b_hh, w.norm_bias) for w in weights]
    given = (*b_ih, *b, *(gains or ()), *(v for w in weights for v in w.own))
    if any(v is not None and v.dtype != input.dtype for v in given):
        return None  # torch's operations convert them, or refuse
    ih = stacked([w.ih for w in weights], G, heads)
    assert ih is not None
    gain = None if gains is None else stacked(gains, G, heads)
    T, B, _ = input.shape
    x = whole.empty((T, B, len(weights) * heads, G, ih.shape[-2] // G), input)
    return Projection(input, ih, stacked(b_ih, G, heads), gain), x, stacked(b, G, heads)


def project(input: Tensor, weights: Sequence[Weights], cell: Cell) -> tuple[Tensor, Tensor | None]:
    """x of the scan, with as many of the biases as can be added to it, and the rest: b (N, G * H).

    The norm of the input's part is over all gates of a group, or over each.
    """
    G, norm, heads = cell.gates, cell.norm, weights[0].heads(cell)

    def of(*names: str) -> Tensor | None:
        # Added before they are grouped: gradients of views of one sum would be views of one memory,
        # which autograd takes for each parameter's own, to add to it in place.
        return grouped([total(*(getattr(w, name) for name in names)) for w in weights], G, heads)

    def flat(v: Tensor | None) -> Tensor | None:
        return None if v is None else v.flatten(1)

    to_x = ("b_ih", "b_hh") if cell.additive else ("b_ih",)
    rest = () if cell.additive else ("b_hh",)
    ih, before = of("ih"), None if norm is not None and not norm.of_sum else of(*to_x)
    assert ih is not None
    x = torch.nn.functional.linear(
        input, ih.flatten(0, 2), None if before is None else before.flatten()
    ).unflatten(-1, ih.shape[:3])
    if norm is None:
        return x, flat(of(*rest))
    if norm.of_sum:
        return x, flat(of("norm_bias"))
    to_x, rest = ("norm_ih_bias", *to_x), (*rest, "norm_bias")
    if cell.additive:
        to_x, rest = (*to_x, *rest), ()
    normed = normalise_x(x, cell)
    gain, bias = of("norm_ih_weight"), of(*to_x)
    normed = normed if gain is None else normed * gain
    normed = normed if bias is None else normed + bias
    # Under autocast a norm is in float32; the scan is in the projection's dtype.
    return normed.to(x.dtype), flat(of(*rest))


def masks(x: Tensor, noise: Noise) -> Tensor | None:
    """m of the scan: in training, which elements keep their old value; else the rate of it."""
    if not noise.zoneout:
        return None
    T, B, N, _, H = x.shape
    if noise.training:
        # In float32, whatever the default: coarser values would not have the rate.
        kind: Any = {"dtype": torch.float32, "device": x.device}
        drawn = [torch.rand(T, B, N, H, **kind) < rate for rate in noise.zoneout]
        return torch.stack(drawn, 3)
    rates = [x.new_full((1, H), rate) for rate in noise.zoneout]
    return torch.cat(rates).expand(T, B, N, -1, -1)


def inject(inputs: Inputs, hh: Tensor, h0: Tensor) -> Inputs:
    """Adds the initial h's part of the gates to x where each group begins.

    With a projection, h = W_hr m for the unprojected output m, so the scan runs on m with the
    weights W_hh W_hr, and no product is left inside the loop for the projection. But the initial
    h (D, B, P) has no m, so its part enters with the input. (A norm of the recurrent part gives 0
    for the zero m of the first step, so what is added is normalised here.)
    """
    x, cell = inputs.x, inputs.equations
    steps = torch.arange(x.shape[0], device=x.device)[:, None, None]
    backward = backward_groups(inputs)
    ends = ((steps == x.shape[0] - 1) & backward) | ((steps == 0) & ~backward)
    first = ends.expand(x.shape[:3])
    if inputs.lengths is not None and any(inputs.reverse):
        first = (first & ~backward) | starts(inputs)
    afresh = fresh(inputs)
    if afresh is not None:
        first = first & ~afresh
    part = torch.einsum("nbp,nrp->bnr", h0.to(x.dtype), hh.to(x.dtype)).unflatten(-1, x.shape[3:])
    if cell.norm is not None and inputs.gain is not None:
        n, _ = normalise(
            part.float() if x.dtype.itemsize < 4 else part, cell.eps, 1 if cell.norm.per_gate else 2
        )
        part = n.to(x.dtype) * inputs.gain
    return inputs._replace(x=torch.where(first[..., None, None], x + part, x))
