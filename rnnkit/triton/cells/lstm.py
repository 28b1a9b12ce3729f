"""LSTM in Triton, in all its forms: c' = f * c + i * g, h' = o * tanh(c').

The number of parameters tells the forms apart: three are peepholes, by which i and f see the old c
and o the new one; two (more) are gain and bias of a norm, h' = o * tanh(LN(c')). With CARRY, LN(c')
is also what is carried on.
"""

import triton
import triton.language as tl

from ..math import quick_sigmoid, quick_tanh, sigmoid
from ..norm import normalise, normalise_vjp
from . import register


@triton.jit
def values(x, r, s, p, u, CARRY: tl.constexpr):
    """i, f, g, o; the new c; tanh of what the output sees; and of the norm its n and scale."""
    a, b = x[0] + r[0], x[1] + r[1]
    if len(p) > 2:
        a, b = a + p[0][None, :] * s[1], b + p[1][None, :] * s[1]
    i = quick_sigmoid(a, u)
    f = sigmoid(b)
    g = quick_tanh(x[2] + r[2], u)
    c = f * s[1] + i * g
    n, scale, seen = c, c, c
    if len(p) == 2 or len(p) == 5:
        ns, scale = normalise((c,), u)
        n = ns[0]
        seen = n * p[len(p) - 2][None, :] + p[len(p) - 1][None, :]
    if CARRY:
        c = seen
    e = x[3] + r[3]
    if len(p) > 2:
        e = e + p[2][None, :] * c
    return i, f, g, quick_sigmoid(e, u), c, quick_tanh(seen, u), n, scale


@triton.jit
def any_step(x, r, s, p, u, CARRY: tl.constexpr):
    found = values(x, r, s, p, u, CARRY)
    return found[3] * found[5], found[4]


@triton.jit
def any_vjp(x, r, s, p, ds, u, CARRY: tl.constexpr):
    i, f, g, o, c, v, n, scale = values(x, r, s, p, u, CARRY)
    do = ds[0] * v * o * (1 - o)
    dc = ds[1]
    dseen = ds[0] * o * (1 - v * v)
    dp = ()
    if len(p) > 2:
        dc = dc + do * p[2][None, :]
    if CARRY:
        dseen = dseen + dc
    if len(p) == 2 or len(p) == 5:
        dp = (dseen * n, dseen)
        dns = normalise_vjp((n,), scale, (dseen * p[len(p) - 2][None, :],), u)
        dseen = dns[0]
    dc = dseen if CARRY else dc + dseen
    di = dc * g * i * (1 - i)
    df = dc * s[1] * f * (1 - f)
    old = dc * f
    if len(p) > 2:
        dp = (di * s[1], df * s[1], do * c) + dp
        old = old + di * p[0][None, :] + df * p[1][None, :]
    da = (di, df, dc * i * (1 - g * g), do)
    return da, da, (tl.zeros_like(old), old), dp


@triton.jit
def step(x, r, s, p, u):
    return any_step(x, r, s, p, u, False)


@triton.jit
def vjp(x, r, s, p, ds, u):
    return any_vjp(x, r, s, p, ds, u, False)


@triton.jit
def carry_step(x, r, s, p, u):
    return any_step(x, r, s, p, u, True)


@triton.jit
def carry_vjp(x, r, s, p, ds, u):
    return any_vjp(x, r, s, p, ds, u, True)


for name in ("lstm", "lstm_norm", "lstm_peephole", "lstm_peephole_norm"):
    register(name, step, vjp)
for name in ("lstm_norm_carry", "lstm_peephole_norm_carry"):
    register(name, carry_step, carry_vjp)
