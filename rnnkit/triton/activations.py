"""Activations and their derivatives on tuples of tiles, independent of the reference's."""

import triton
import triton.language as tl

from .math import sigmoid, tanh


@triton.jit
def identity(a):
    return a[0]


@triton.jit
def identity_vjp(a, dy):
    return (dy,)


@triton.jit
def relu(a):
    # Not tl.maximum, which would hide a NaN.
    return tl.where(a[0] <= 0, 0.0, a[0])


@triton.jit
def relu_vjp(a, dy):
    return (tl.where(a[0] <= 0, 0.0, dy),)


@triton.jit
def silu(a):
    return a[0] * sigmoid(a[0])


@triton.jit
def silu_vjp(a, dy):
    s = sigmoid(a[0])
    return (dy * (s + a[0] * s * (1 - s)),)


@triton.jit
def tanh_value(a):
    return tanh(a[0])


@triton.jit
def tanh_vjp(a, dy):
    t = tanh(a[0])
    return (dy * (1 - t * t),)


@triton.jit
def gated(a):
    return tanh(a[0]) * sigmoid(a[1])


@triton.jit
def gated_vjp(a, dy):
    t, s = tanh(a[0]), sigmoid(a[1])
    return dy * s * (1 - t * t), dy * t * s * (1 - s)


# By name: the value of a tuple of parts, and the gradients of the parts.
ACTIVATIONS = {
    None: (identity, identity_vjp),
    "relu": (relu, relu_vjp),
    "silu": (silu, silu_vjp),
    "tanh": (tanh_value, tanh_vjp),
    "gated": (gated, gated_vjp),
}
