"""LSTM in Triton, in all its forms: c' = f * c + i * g, h' = o * tanh(c').

PEEPHOLE: i and f see the old c, o the new one. NORM: h' = o * tanh(LN(c')). CARRY: LN(c') is also
what is carried on.
"""

import triton
import triton.language as tl

from ..math import sigmoid, tanh
from ..norm import normalise, normalise_vjp
from . import register


@triton.jit
def values(x, r, s, p, u, PEEPHOLE: tl.constexpr, NORM: tl.constexpr, CARRY: tl.constexpr):
    """i, f, g, o; the new c; tanh of what the output sees; and of the norm its n and scale."""
    a, b = x[0] + r[0], x[1] + r[1]
    if PEEPHOLE:
        a, b = a + p[0][None, :] * s[1], b + p[1][None, :] * s[1]
    i = sigmoid(a)
    f = sigmoid(b)
    g = tanh(x[2] + r[2])
    c = f * s[1] + i * g
    n = c
    scale = c
    seen = c
    if NORM:
        ns, scale = normalise((c,), u)
        n = ns[0]
        seen = n * p[len(p) - 2][None, :] + p[len(p) - 1][None, :]
    if CARRY:
        c = seen
    e = x[3] + r[3]
    if PEEPHOLE:
        e = e + p[2][None, :] * c
    return i, f, g, sigmoid(e), c, tanh(seen), n, scale


@triton.jit
def step(x, r, s, p, u, PEEPHOLE: tl.constexpr, NORM: tl.constexpr, CARRY: tl.constexpr):
    found = values(x, r, s, p, u, PEEPHOLE, NORM, CARRY)
    return found[3] * found[5], found[4]


@triton.jit
def vjp(x, r, s, p, ds, u, PEEPHOLE: tl.constexpr, NORM: tl.constexpr, CARRY: tl.constexpr):
    i, f, g, o, c, v, n, scale = values(x, r, s, p, u, PEEPHOLE, NORM, CARRY)
    do = ds[0] * v * o * (1 - o)
    dc = ds[1]
    dseen = ds[0] * o * (1 - v * v)
    dp = ()
    if PEEPHOLE:
        dc = dc + do * p[2][None, :]
    if CARRY:
        dseen = dseen + dc
    if NORM:
        dp = (dseen * n, dseen)
        dns = normalise_vjp((n,), scale, (dseen * p[len(p) - 2][None, :],), u)
        dseen = dns[0]
    dc = dseen if CARRY else dc + dseen
    di = dc * g * i * (1 - i)
    df = dc * s[1] * f * (1 - f)
    old = dc * f
    if PEEPHOLE:
        dp = (di * s[1], df * s[1], do * c) + dp
        old = old + di * p[0][None, :] + df * p[1][None, :]
    da = (di, df, dc * i * (1 - g * g), do)
    return da, da, (tl.zeros_like(old), old), dp


@triton.jit
def plain_step(x, r, s, p, u):
    return step(x, r, s, p, u, False, False, False)


@triton.jit
def plain_vjp(x, r, s, p, ds, u):
    return vjp(x, r, s, p, ds, u, False, False, False)


@triton.jit
def norm_step(x, r, s, p, u):
    return step(x, r, s, p, u, False, True, False)


@triton.jit
def norm_vjp(x, r, s, p, ds, u):
    return vjp(x, r, s, p, ds, u, False, True, False)


@triton.jit
def norm_carry_step(x, r, s, p, u):
    return step(x, r, s, p, u, False, True, True)


@triton.jit
def norm_carry_vjp(x, r, s, p, ds, u):
    return vjp(x, r, s, p, ds, u, False, True, True)


@triton.jit
def peephole_step(x, r, s, p, u):
    return step(x, r, s, p, u, True, False, False)


@triton.jit
def peephole_vjp(x, r, s, p, ds, u):
    return vjp(x, r, s, p, ds, u, True, False, False)


@triton.jit
def peephole_norm_step(x, r, s, p, u):
    return step(x, r, s, p, u, True, True, False)


@triton.jit
def peephole_norm_vjp(x, r, s, p, ds, u):
    return vjp(x, r, s, p, ds, u, True, True, False)


@triton.jit
def peephole_norm_carry_step(x, r, s, p, u):
    return step(x, r, s, p, u, True, True, True)


@triton.jit
def peephole_norm_carry_vjp(x, r, s, p, ds, u):
    return vjp(x, r, s, p, ds, u, True, True, True)


register("lstm", plain_step, plain_vjp)
register("lstm_norm", norm_step, norm_vjp)
register("lstm_norm_carry", norm_carry_step, norm_carry_vjp)
register("lstm_peephole", peephole_step, peephole_vjp)
register("lstm_peephole_norm", peephole_norm_step, peephole_norm_vjp)
register("lstm_peephole_norm_carry", peephole_norm_carry_step, peephole_norm_carry_vjp)
