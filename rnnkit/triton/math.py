"""Functions of one variable for kernels; none overflows to NaN at any input.

The quick ones are for results of 16 bits, where `u` says so (`rnnkit.triton.norm`). A gate that
scales the state at every step is not quick: there an error would grow with the sequence.
"""

import math

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq

from . import fit

INTERPRETED = tl.constexpr(fit.INTERPRETED)
LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def exp(v):
    # tl.exp takes care of results below the normal numbers, at a third of a gate's instructions.
    return tl.exp2(v * LOG2_E) if v.dtype == tl.float32 else tl.exp(v)


@triton.jit
def inverse(v):
    # The usual division, as exact, takes care of v above 2^126 too, of which this makes 0.
    if INTERPRETED or v.dtype != tl.float32 or not cuda_capability_geq(8):
        found = 1.0 / v
    else:
        found = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [v], tl.float32, is_pure=True, pack=1
        )
    return found


@triton.jit
def sigmoid(v):
    # exp overflows to inf for v < -88, and 1 / inf is the right 0.
    return inverse(1.0 + exp(v * -1.0))


@triton.jit
def tanh(v):
    # The usual (1 - e) / (1 + e) with e = exp(-2 v) is inf / inf for very negative v. Near 0 the
    # difference would cancel: there stands the series, whose next term is below half an ulp.
    u = v * v
    rest = u * (-17 / 315 + u * (62 / 2835)) if v.dtype == tl.float64 else 0.0
    series = v * (1 + u * (-1 / 3 + u * (2 / 15 + rest)))
    return tl.where(tl.abs(v) < 0.03, series, level_tanh(v))


@triton.jit
def level_tanh(v):
    """Its error is an ulp of 1, also where tanh is small."""
    return 2.0 * inverse(1.0 + exp(v * -2.0)) - 1.0


@triton.jit
def quick_tanh(v, u):
    if len(u) == 3:
        found = tanh(v)
    elif INTERPRETED:
        # As wrong as the instruction may be.
        found = tanh(v).to(tl.float16).to(v.dtype)
    elif cuda_capability_geq(8):
        found = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [v], tl.float32, is_pure=True, pack=1
        )
    else:
        found = level_tanh(v)
    return found


@triton.jit
def quick_sigmoid(v, u):
    return 0.5 + 0.5 * quick_tanh(0.5 * v, u) if len(u) > 3 else sigmoid(v)
