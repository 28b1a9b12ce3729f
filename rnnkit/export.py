"""rnnkit's operators in terms of torch's own, for programs that are to run where rnnkit is not.

A program of `torch.export` holds `rnnkit::scan` and its like, which `import rnnkit` brings. After
`program.run_decompositions(rnnkit.export.decompositions())` it needs torch alone: a scan is the
reference's, its loop over time one operation, `torch.ops.higher_order.scan`. It is for inference:
torch 2.11 has wrong gradients of that loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .ops import allocate, rows
from .ops.convolution import Convolution
from .ops.scan import given
from .ops.sequence import turn
from .reference import scan as reference
from .torch_kernels.causal_conv1d import causal_conv1d
from .torch_kernels.layer_norm import layer_norm
from .torch_kernels.wavenet import wavenet

__all__ = ["decompositions"]

Tensors = tuple[Tensor, ...]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """All of rnnkit's operators, for `torch.export.ExportedProgram.run_decompositions`.

    What they give is for inference: torch 2.11 has wrong gradients of the loop.
    """
    of = torch.ops.rnnkit
    return {
        of.scan.default: decomposed_scan,
        of.layer_norm.default: decomposed_layer_norm,
        of.causal_conv1d.default: lambda *args: causal_conv1d(Convolution(*args)),
        of.wavenet.default: decomposed_wavenet,
    }


def decomposed_scan(*args: Any) -> Tensors:
    """`rnnkit::scan`; a program that has it keeps nothing for backward."""
    return *scan(*args[:-1]), *allocate.allocate_products(args[0], args[-3], False)


def decomposed_layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str | None,
    dtype: torch.dtype,
) -> Tensors:
    """`rnnkit::layer_norm`, but for the statistics, which backward alone reads."""
    y, v = layer_norm(x, x.shape[1:], weight, bias, eps, residual, activation)
    _, total, stats = rows.allocate(x, residual, dtype)
    return y.to(dtype), total if residual is None else v, stats


def decomposed_wavenet(x: Tensor, *args: Any) -> Tensors:
    """`rnnkit::wavenet`."""
    xs, z = wavenet(x, *args)
    return torch.stack(xs) if xs else x.new_empty(0, *x.shape), z


def scan(*values: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.scan.scan` by the reference, with one operation for the loop over time."""
    inputs = reference.upcast(given(*values))
    live, afresh = reference.flags(inputs)
    m = None if inputs.m is None else turn(inputs.m.to(inputs.x.dtype), inputs.reverse)
    # All that a step reads must be its argument: the states, what comes with time, and the rest.
    sequences = present(x=turn(inputs.x, inputs.reverse), m=m, live=live, afresh=afresh)
    constants = present(w=inputs.w, b=inputs.b, p=inputs.p, d=inputs.d)
    names, count = (*sequences, *constants), inputs.equations.states

    def step(*tensors: Tensor) -> Tensors:
        read = dict(zip(names, tensors[count:], strict=False))
        own: dict[str, Any] = {name: read[name] for name in constants}
        call = inputs._replace(**own)
        m = read["m"].unbind(2) if "m" in read else ()
        flags = read.get("live"), read.get("afresh")
        s, shown = reference.advance(call, tensors[:count], read["x"].unbind(2), m, *flags)
        # All are tensors of their own, and states as they come in, to the stride.
        return *(v.contiguous() for v in s), *(v.clone() for v in shown)

    s0 = [v.clone(memory_format=torch.contiguous_format) for v in reference.initial(inputs)]
    # A size that is not known is an argument, too: Inductor allocates results by it.
    sizes = [size for size in inputs.x.shape[:2] if isinstance(size, torch.SymInt)]
    found = torch.ops.higher_order.scan(
        step, s0, [*sequences.values()], (*constants.values(), *sizes)
    )
    last, shown = found[:count], found[count:]
    return reference.results(inputs, shown, last, values[0].dtype)


def present(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Those that there are."""
    return {name: v for name, v in tensors.items() if v is not None}
