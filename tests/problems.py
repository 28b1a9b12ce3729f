"""Small scans of every kind, and the definition of a scan as a loop over single elements."""

from dataclasses import dataclass, field

import torch

import rnnkit
from rnnkit.ops.sequence import Inputs


@dataclass(frozen=True)
class Kind:
    """Which features a problem uses, and its sizes."""

    reverse: tuple[bool, ...] = (False,)
    groups: int = 1
    lengths: tuple[int, ...] | None = None
    resets: bool = False
    dropout: bool = False
    zoneout: bool = False
    bias: bool = True
    start: bool = True
    sizes: dict[str, int] = field(default_factory=lambda: {"T": 4, "B": 3, "H": 3})


KINDS = {
    "plain": Kind(),
    "no_bias_no_start": Kind(bias=False, start=False),
    "reversed": Kind(reverse=(True,)),
    "bidirectional_heads": Kind(reverse=(False, True), groups=2),
    "lengths": Kind(reverse=(False, True), lengths=(2, 0, 4)),
    "resets": Kind(reverse=(False, True), resets=True),
    "zoneout": Kind(reverse=(False, True), zoneout=True, lengths=(4, 2, 3)),
    "all": Kind((False, True), 1, (4, 1, 3), resets=True, dropout=True, zoneout=True),
    "one_step": Kind(sizes={"T": 1, "B": 1, "H": 1}),
}
# Every feature at once, as small as it can be: for checks that evaluate a scan many times.
TINY = Kind((False, True), 1, (2, 1), True, True, True, sizes={"T": 2, "B": 2, "H": 3})
LARGER = {
    "two_tiles": Kind(lengths=(0, 3) * 9, resets=True, sizes={"T": 3, "B": 18, "H": 37}),
    "batch": Kind((False, True), 1, (2, 0) * 17, True, True, True, sizes={"T": 2, "B": 34, "H": 7}),
    "wide": Kind((False, True), 1, (3, 2), zoneout=True, sizes={"T": 3, "B": 2, "H": 133}),
}


def sample(cell: str, kind: Kind, dtype=torch.float64, device="cpu", grad=True) -> Inputs:
    """A random problem of that kind."""
    equations = rnnkit.cells.find(cell)
    T, B, H = (kind.sizes[name] for name in "TBH")
    N, G, S = kind.groups * len(kind.reverse), equations.gates, equations.states
    # With resets, every state has a mask; else only the first.
    E = 0 if not kind.zoneout else S if kind.resets else 1

    def draw(*shape, scale=1.0):
        value = torch.randn(shape, dtype=torch.float64, device=device) * scale
        return value.to(dtype).requires_grad_(grad)

    lengths = resets = None
    if kind.lengths is not None:
        lengths = torch.tensor(kind.lengths, device=device)[:, None].expand(B, N)
    if kind.resets:
        resets = (torch.rand(T, B, device=device) < 0.4)[..., None].expand(T, B, N)
    return Inputs(
        x=draw(T, B, N, G, H),
        w=draw(N, G * H, H, scale=H**-0.5),
        b=draw(N, G * H) if kind.bias else None,
        s0=draw(S, B, N, H) if kind.start else None,
        p=draw(N, equations.rows, H) if equations.rows else None,
        m=torch.rand(T, B, N, E, H, dtype=torch.float64, device=device) if E else None,
        d=(torch.rand(B, N, H, device=device) < 0.7).to(dtype) / 0.7 if kind.dropout else None,
        lengths=lengths,
        resets=resets,
        cell=cell,
        reverse=kind.reverse,
    )


def differentiable(inputs: Inputs) -> list[torch.Tensor]:
    return [v for v in inputs[:5] if v is not None]


def with_tensors(inputs: Inputs, tensors) -> Inputs:
    """The inputs with other values for the differentiable ones."""
    values = iter(tensors)
    names = [name for name in Inputs._fields[:5] if getattr(inputs, name) is not None]
    return inputs._replace(**{name: next(values) for name in names})


def loop(inputs: Inputs):
    """The scan by its definition: each row of each group walks through its own valid steps."""
    cell, x, T = inputs.equations, inputs.x, inputs.x.shape[0]
    B, N, H = x.shape[1], x.shape[2], x.shape[4]
    zero = x.new_zeros(H)
    states = [[[[zero] * N for _ in range(B)] for _ in range(T)] for _ in range(cell.states)]
    last = [[[zero] * N for _ in range(B)] for _ in range(cell.states)]
    for b in range(B):
        for n in range(N):
            back = inputs.reverse[n * len(inputs.reverse) // N]
            length = T if inputs.lengths is None else int(inputs.lengths[b, n])
            s = [zero] * cell.states if inputs.s0 is None else list(inputs.s0[:, b, n])
            walk = range(length)
            for t in reversed(walk) if back else walk:
                boundary = t + 1 if back else t
                if (
                    inputs.resets is not None
                    and boundary < length
                    and inputs.resets[boundary, b, n]
                ):
                    s = [zero] * cell.states
                s = list(one_step(inputs, t, b, n, s))
                for k, value in enumerate(s):
                    states[k][t][b][n] = value
            for k, value in enumerate(s):
                last[k][b][n] = value
    output, *cells = (
        torch.stack([torch.stack([torch.stack(r) for r in v]) for v in k]) for k in states
    )
    empty = x.new_zeros(0, T, B, N, H)
    finals = torch.stack([torch.stack([torch.stack(r) for r in v]) for v in last])
    return output, torch.stack(cells) if cells else empty, finals


def one_step(inputs: Inputs, t: int, b: int, n: int, s):
    """One step of one row of one group, every value a vector of H."""
    cell, H = inputs.equations, inputs.x.shape[-1]
    d = 1 if inputs.d is None else inputs.d[b, n]
    x = tuple(inputs.x[t, b, n])
    p = () if inputs.p is None else tuple(inputs.p[n])
    gain, p = p[: cell.gains], p[cell.gains :]
    bias = inputs.w.new_zeros(cell.gates * H) if inputs.b is None else inputs.b[n]
    bias = bias.view(-1, H)

    def product(q, gates):
        """x and r of some gates."""
        r = (inputs.w[n].view(-1, H, H)[gates] @ (q * d)).view(-1, H)
        if cell.norm is None:
            return x[gates], tuple(r + bias[gates])
        sums = r + torch.stack(x[gates]) if cell.norm.of_sum else r
        shape = [H] if cell.norm.per_gate else list(sums.shape)
        r = torch.nn.functional.layer_norm(sums, shape, eps=cell.eps)
        seen = tuple(torch.zeros_like(v) for v in x[gates]) if cell.norm.of_sum else x[gates]
        return seen, tuple(r * torch.stack(gain[gates]) + bias[gates])

    early = cell.gates if cell.inner is None else cell.inner.early
    seen, r = product(s[0], slice(early))
    if cell.inner is not None:
        q = cell.inner.step(seen, r, tuple(s), p)
        seen_late, r_late = product(q, slice(early, None))
        seen, r = seen + seen_late, r + r_late
    new = list(cell.step(seen, r, tuple(s), p))
    if inputs.m is not None:
        for k, share in enumerate(inputs.m[t, b, n].to(inputs.x.dtype)):
            new[k] = share * s[k] + (1 - share) * new[k]
    return new
