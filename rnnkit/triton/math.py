"""Functions of one variable for kernels; none overflows to NaN at any input."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(v):
    # exp overflows to inf for v < -88, and 1 / inf is the right 0.
    return 1.0 / (1.0 + tl.exp(-v))


@triton.jit
def tanh(v):
    # The usual (1 - e) / (1 + e) with e = exp(-2 v) is inf / inf for very negative v. Near 0 the
    # difference would cancel: there stands the series, whose next term is below half an ulp.
    u = v * v
    series = v * (1 + u * (-1 / 3 + u * (2 / 15 + u * (-17 / 315 + u * (62 / 2835)))))
    return tl.where(tl.abs(v) < 0.03, series, 2.0 / (1.0 + tl.exp(-2.0 * v)) - 1.0)
