"""The scan: every cell on every backend, for every kind of problem."""

import pytest
import torch
from problems import KINDS, LARGER, TINY, Kind, differentiable, loop, sample, with_tensors

import rnnkit
from rnnkit.dispatch import problem_of
from rnnkit.ops.scan import BATCH, STATES, scan

NAMES = ("x", "w", "b", "s0", "p")
ALL_KINDS = KINDS | {"tiny": TINY}


def slow(name):
    """A kind that only `make test-all` runs."""
    return pytest.param(name, marks=pytest.mark.slow)


def run(inputs, function, seed=1, arriving=("output", "cells", "last")):
    """Outputs and gradients under independent random cotangents, by name."""
    outputs = dict(zip(("output", "cells", "last"), function(inputs), strict=True))
    generator = torch.Generator().manual_seed(seed)
    loss = 0.0
    for name in arriving:
        value = outputs[name]
        cotangent = torch.randn(value.shape, dtype=torch.float64, generator=generator)
        loss = loss + (value * cotangent.to(value)).sum()
    names = [name for name in NAMES if getattr(inputs, name) is not None]
    gradients = torch.autograd.grad(loss, differentiable(inputs), allow_unused=True)
    for name, value in zip(names, gradients, strict=True):
        given = torch.zeros_like(getattr(inputs, name)) if value is None else value
        outputs[f"d{name}"] = given
    return outputs


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        error = (found[name] - expected[name]).abs().max() if expected[name].numel() else 0.0
        scale = 1 + (expected[name].abs().max() if expected[name].numel() else 0.0)
        assert found[name].shape == expected[name].shape, name
        assert error / scale < tolerance, f"{name}: {error} at a scale of {scale}"


# Others show what these do.
REPEATED = ("reversed", "zoneout")


@pytest.mark.parametrize("kind", [slow(name) if name in REPEATED else name for name in KINDS])
def test_equals_the_loop(cell, on, kind, device):
    inputs = sample(cell, KINDS[kind], device=device)
    tolerance = 1e-12 if on == "reference" else 1e-10
    assert_same(run(inputs, lambda v: scan(*v)), run(inputs, loop), tolerance)


@pytest.mark.parametrize("kind", ["two_tiles", slow("wide")])
def test_equals_the_reference_at_odd_sizes(cell, on, kind, device):
    inputs = sample(cell, LARGER[kind], device=device)
    found = run(inputs, lambda v: scan(*v))
    with rnnkit.backend("reference"):
        assert_same(found, run(inputs, lambda v: scan(*v)), 1e-10)


@pytest.mark.parametrize("arriving", ["output", "cells", slow("last")])
def test_gradient_of_each_output_alone(cell, on, arriving, device):
    inputs = sample(cell, KINDS["all"], device=device)
    if arriving == "cells" and inputs.equations.states == 1:
        assert scan(*inputs)[1].shape == (0, *inputs.x.shape[:3], inputs.x.shape[-1])
        return
    found = run(inputs, lambda v: scan(*v), arriving=(arriving,))
    assert_same(found, run(inputs, loop, arriving=(arriving,)), 1e-10)


def effort(on):
    """Of a gradient check: absent gradients are the operator's matter, not the kernels'."""
    return {"fast_mode": True, "check_undefined_grad": on == "reference"}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["all", *map(slow, sorted(set(KINDS) - {"all"}))])
def test_gradcheck(cell, on, kind, device):
    inputs = sample(cell, KINDS[kind], device=device)

    def call(*tensors):
        return tuple(v for v in scan(*with_tensors(inputs, tensors)) if v.numel())

    assert torch.autograd.gradcheck(call, differentiable(inputs), nondet_tol=0.0, **effort(on))


@pytest.mark.heavy(forms=2)  # backward of backward is the reference's on every backend
@pytest.mark.parametrize("kind", ["tiny", slow("bidirectional_heads"), slow("all")])
def test_gradgradcheck(cell, on, kind, device):
    inputs = sample(cell, ALL_KINDS[kind], device=device)

    def call(*tensors):
        return tuple(v for v in scan(*with_tensors(inputs, tensors)) if v.numel())

    assert torch.autograd.gradgradcheck(call, differentiable(inputs), **effort(on))


def permuted(value):
    """The same values in a dense layout with the last two dimensions exchanged."""
    if value is None or not isinstance(value, torch.Tensor) or value.dim() < 2:
        return value
    return value.detach().mT.contiguous().mT.requires_grad_(value.requires_grad)


@pytest.mark.heavy(forms=2)
@pytest.mark.parametrize("kind", ["tiny", slow("plain"), slow("all")])
@pytest.mark.parametrize("layout", [slow("dense"), "permuted"])
def test_opcheck(cell, on, kind, layout, device):
    inputs = sample(cell, ALL_KINDS[kind], device=device)
    if layout == "permuted":
        inputs = inputs._replace(**{k: permuted(v) for k, v in inputs._asdict().items()})
    with torch.no_grad():
        output, cells, last = scan(*inputs)
    arriving = [torch.randn_like(v).requires_grad_() for v in (output, cells, last)]
    forward, backward = torch.ops.rnnkit.scan.default, torch.ops.rnnkit.scan_backward.default
    for keep in (False, True):
        torch.library.opcheck(forward, (*inputs, keep))
    *tensors, cell, reverse = inputs
    kept = (None, None) if kind == "plain" else forward(*inputs, True)[3:]
    if kind == "plain":
        arriving[1:] = [None, None]
    torch.library.opcheck(backward, (*arriving, output, cells, *tensors, *kept, cell, reverse))


@pytest.mark.heavy
def test_fullgraph(cell, on, device):
    torch.compiler.reset()  # the cases share their code, and only so many graphs are kept of one
    inputs = sample(cell, KINDS["all"], device=device)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def compiled(*values):
        return scan(*values[:9], cell, (False, True))

    found = run(inputs, lambda v: compiled(*v[:9]))
    assert_same(found, run(inputs, lambda v: scan(*v)), 1e-12)


@pytest.mark.heavy
@pytest.mark.parametrize("layout", ["sliced", "permuted", slow("expanded")])
def test_strided_inputs(cell, on, layout, device):
    inputs = sample(cell, KINDS["all"], device=device)

    def move(value):
        if not isinstance(value, torch.Tensor) or value.dim() < 2:
            return value
        if layout == "permuted":
            return permuted(value)
        if layout == "sliced":
            wide = torch.cat([value, value], -1).detach()
            return wide[..., : value.shape[-1]].requires_grad_(value.requires_grad)
        return value.detach()[:1].expand(value.shape).requires_grad_(value.requires_grad)

    strided = inputs._replace(**{k: move(v) for k, v in inputs._asdict().items()})
    clones = {
        k: v.detach().clone().requires_grad_(v.requires_grad)
        for k, v in strided._asdict().items()
        if isinstance(v, torch.Tensor)
    }
    found = run(strided, lambda v: scan(*v))
    assert_same(found, run(inputs._replace(**clones), lambda v: scan(*v)), 1e-12)


@pytest.mark.parametrize("sizes", [{"T": 0, "B": 3, "H": 2}, {"T": 3, "B": 0, "H": 2}], ids=str)
def test_empty(cell, on, sizes, device):
    kind = KINDS["bidirectional_heads"]
    inputs = sample(cell, kind.__class__(**(vars(kind) | {"sizes": sizes})), device=device)
    found = run(inputs, lambda v: scan(*v))
    assert torch.equal(found["last"], inputs.s0)
    assert found["output"].numel() == 0
    assert not found["dw"].any()


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_saturation(cell, on, size, device):
    inputs = sample(cell, KINDS["plain"], device=device, dtype=torch.float32)
    inputs = inputs._replace(x=torch.full_like(inputs.x, size).requires_grad_())
    for name, value in run(inputs, lambda v: scan(*v)).items():
        assert value.isfinite().all(), name


def test_nan_in_the_padding_stays_there(cell, on, device):
    inputs = sample(cell, KINDS["lengths"], device=device)
    live = torch.arange(4, device=device)[:, None] < inputs.lengths[:, 0]
    x = inputs.x.detach().masked_fill(~live[..., None, None, None], float("nan")).requires_grad_()
    found = run(inputs._replace(x=x), lambda v: scan(*v))
    assert_same(found, run(inputs, lambda v: scan(*v)), 1e-12)


def test_nan_in_the_padding_of_second_derivatives(cell, device):
    inputs = sample(cell, KINDS["lengths"], device=device)
    live = torch.arange(4, device=device)[:, None] < inputs.lengths[:, 0]
    x = inputs.x.detach().masked_fill(~live[..., None, None, None], float("nan")).requires_grad_()
    loss = scan(*inputs._replace(x=x))[0].square().sum()
    (dw,) = torch.autograd.grad(loss, inputs.w, create_graph=True)
    for name, value in zip(
        "xw", torch.autograd.grad(dw.square().sum(), (x, inputs.w)), strict=True
    ):
        assert value.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16], ids=str)
def test_lengths_of_a_small_dtype(dtype):
    """T need not fit into the dtype of lengths."""
    T = torch.iinfo(dtype).max + 1 if dtype != torch.int16 else 9
    inputs = sample("rnn_tanh", Kind((False, True), lengths=(3, 5), sizes={"T": T, "B": 2, "H": 2}))
    small = inputs._replace(lengths=inputs.lengths.to(dtype))
    assert_same(run(small, lambda v: scan(*v)), run(inputs, lambda v: scan(*v)), 1e-12)


def test_bitwise_repeatable_and_backward_twice(cell, on, device):
    inputs = sample(cell, KINDS["all"], device=device, dtype=torch.float32)
    output, _, last = scan(*inputs)
    loss = output.square().sum() + last.sum()
    first = torch.autograd.grad(loss, differentiable(inputs), retain_graph=True)
    second = torch.autograd.grad(loss, differentiable(inputs))
    again = scan(*inputs)
    assert torch.equal(again[0], output) and torch.equal(again[2], last)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def row(inputs, b):
    """The problem of one row alone."""
    dims = {"x": 1, "s0": 1, "m": 1, "d": 0, "lengths": 0, "resets": 1}
    given = {name: getattr(inputs, name) for name in dims}
    alone = {k: v.narrow(dims[k], b, 1) for k, v in given.items() if v is not None}
    return inputs._replace(**alone)


@pytest.mark.parametrize("kind", ["batch", slow("wide")])
def test_a_row_is_the_same_in_any_batch(cell, on, kind, device):
    """Bit for bit, wherever it stands: a kernel's sums do not depend on the batch."""
    if on == "reference":
        pytest.skip("the products of the reference are the BLAS library's, which depend on it")
    if on == "stepwise" and device.type == "cpu" and rnnkit.cells.find(cell).inner is not None:
        pytest.skip("the inner step is torch's, whose sigmoid on a CPU depends on the position")
    inputs = sample(cell, LARGER[kind], device=device, dtype=torch.float32, grad=False)
    whole = scan(*inputs)
    for b in (0, 1, inputs.x.shape[1] - 1):
        for name, found, expected in zip(STATES, scan(*row(inputs, b)), whole, strict=True):
            assert torch.equal(found, expected.narrow(BATCH[name], b, 1)), (name, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_precision(cell, on, dtype, device):
    """Errors against float64 stay within what rounding at every step explains."""
    if dtype == torch.bfloat16 and device.type == "cpu" and on in ("triton", "stepwise"):
        pytest.skip("triton's interpreter computes bfloat16 wrongly")
    if (on, dtype) == ("cpu", torch.float16):
        assert "float16" in rnnkit.cpu.scan.why_not(problem_of(sample(cell, KINDS["plain"], dtype)))
        return
    exact = sample(cell, LARGER["two_tiles"], device=device)
    rounded = {
        k: v.detach().to(dtype).requires_grad_(v.requires_grad)
        for k, v in exact._asdict().items()
        if isinstance(v, torch.Tensor) and v.is_floating_point()
    }
    inputs = exact._replace(**rounded)
    exact = inputs._replace(**{k: v.detach().double().requires_grad_() for k, v in rounded.items()})
    with rnnkit.backend("reference"):
        expected = run(exact, lambda v: scan(*v))
    found = {k: v.double() for k, v in run(inputs, lambda v: scan(*v)).items()}
    # Each of T steps rounds; a gradient sums B T roundings; 8 covers the gates' slopes.
    assert_same(found, expected, 8 * torch.finfo(dtype).eps * (3 * 18) ** 0.5)
