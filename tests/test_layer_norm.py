"""The operator of layer normalisation: every backend, for every kind of problem."""

import math
import random

import pytest
import torch
from layer_variants import assert_gradients_add_up
from operator_calls import assert_same, check_per_sample_gradients, permuted
from torch.func import jvp, vmap

import rnnkit
from rnnkit import dispatch
from rnnkit.layers.norm import LayerNorm
from rnnkit.ops.layer_norm import layer_norm
from rnnkit.triton import layer_norm as triton_layer_norm
from rnnkit.triton import layer_norm_tiles as tiles

ACTIVATE = {
    None: lambda a: a,
    "relu": lambda a: a.clamp(min=0),
    "silu": lambda a: a * torch.sigmoid(a),
    "tanh": lambda a: 2 * torch.sigmoid(2 * a) - 1,
}
NAMES = ("x", "weight", "bias", "residual")


@pytest.fixture(params=["reference", "triton", "chunks"])
def on(request, monkeypatch):
    """One backend; "chunks" is triton with short chunks and few programs, which loop."""
    if request.param == "chunks":
        for name in ("FORWARD", "BACKWARD"):
            monkeypatch.setattr(tiles, name, {1: 32, 2: 32})
        monkeypatch.setattr(tiles, "LIGHT", 32)
        monkeypatch.setattr(tiles, "CHUNK", 128)
        monkeypatch.setattr(tiles, "TILE", 512)

        def few(M, tile, device, others=1):
            return min(2, -(-M // tile.rows))

        monkeypatch.setattr(triton_layer_norm, "programs", few)
    with rnnkit.backend("reference" if request.param == "reference" else "triton"):
        yield request.param


def sample(
    M, N, device, residual=True, weight=True, bias=True, activation=None, total=True,
    dtype=torch.float64, lead=None, sizes=None,
):  # fmt: skip
    """The arguments of a call by name, as leaves."""
    shape, own = (*(lead or (M,)), *(sizes or (N,))), sizes or (N,)
    given = {"x": shape, "weight": own if weight else None, "bias": own if bias else None}
    given["residual"] = shape if residual else None
    call = {
        name: None
        if size is None
        else torch.randn(size, dtype=torch.float64).to(device, dtype).requires_grad_()
        for name, size in given.items()
    }
    more = {"normalized_shape": own, "eps": 1e-3, "activation": activation, "return_sum": total}
    return call | more


def formula(x, normalized_shape, weight, bias, eps, residual, activation, return_sum):
    """The equations of the paper, on the tensors as they are."""
    v = x if residual is None else x + residual
    axes = tuple(range(-len(normalized_shape), 0))
    centred = v - v.mean(axes, keepdim=True)
    a = centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt()
    a = a if weight is None else a * weight
    y = ACTIVATE[activation](a if bias is None else a + bias)
    return (y, v) if return_sum else y


def run(call, function=layer_norm, only=("y", "sum")):
    """Results and gradients under independent random cotangents, by name."""
    found = function(**call)
    found = dict(zip(("y", "sum"), found if call["return_sum"] else (found,), strict=False))
    generator = torch.Generator().manual_seed(1)
    loss = 0.0
    for name, value in found.items():
        cotangent = torch.randn(value.shape, dtype=torch.float64, generator=generator).to(value)
        loss = loss + (value * cotangent).sum() * (name in only)
    leaves = {name: call[name] for name in NAMES if call[name] is not None}
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return found | {f"d{k}": v for k, v in zip(leaves, gradients, strict=True)}


def problems(count):
    """A seeded sweep over sizes and features."""
    draw = random.Random(3)
    for k in range(count):
        M, N = draw.choice([0, 1, 2, 3, 7, 20]), draw.choice([1, 2, 3, 8, 17, 50, 64, 100, 193])
        flags = [draw.random() < 0.5 for _ in range(4)]
        sizes = draw.choice([None, None, (2, -(-N // 2)), (1, N, 1)])
        lead = draw.choice([None, None, (), (M, 2)])
        yield pytest.param(M, N, flags, sizes, lead, list(ACTIVATE)[k % 4], id=f"{k}-{M}-{N}")


def drawn(M, N, flags, sizes, lead, activation, device):
    residual, weight, bias, total = flags
    return sample(M, N, device, residual, weight, bias, activation, total, lead=lead, sizes=sizes)


@pytest.mark.parametrize(("M", "N", "flags", "sizes", "lead", "activation"), list(problems(30)))
def test_equals_the_formula(on, M, N, flags, sizes, lead, activation, device):
    call = drawn(M, N, flags, sizes, lead, activation, device)
    assert_same(run(call), run(call, formula), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("M", "N", "flags", "sizes", "lead", "activation"), list(problems(300)))
def test_equals_the_formula_everywhere(on, M, N, flags, sizes, lead, activation, device):
    call = drawn(M, N, flags, sizes, lead, activation, device)
    assert_same(run(call), run(call, formula), 1e-10)


@pytest.mark.parametrize("only", ["y", "sum"])
def test_gradient_of_each_result_alone(on, only, device):
    call = sample(3, 20, device, activation="tanh")
    found, expected = ({}, {})
    for into, function in ((found, layer_norm), (expected, formula)):
        values = dict(zip(("y", "sum"), function(**call), strict=True))
        leaves = [call[name] for name in (NAMES if only == "y" else ("x", "residual"))]
        loss = (values[only] * torch.arange(60.0, device=device).view(3, 20)).sum()
        into.update(enumerate(torch.autograd.grad(loss, leaves)))
    assert_same(found, expected, 1e-10)


def tensors_of(call):
    return tuple(call[name] for name in NAMES if call[name] is not None)


def with_tensors(call, tensors):
    names = [name for name in NAMES if call[name] is not None]
    return call | dict(zip(names, tensors, strict=True))


@pytest.mark.parametrize("activation", [None, "silu"])
def test_gradcheck_and_gradgradcheck(on, activation, device):
    call = sample(2, 5, device, activation=activation)

    def function(*tensors):
        return layer_norm(**with_tensors(call, tensors))

    fast = {"fast_mode": True, "check_undefined_grad": on == "reference"}
    assert torch.autograd.gradcheck(function, tensors_of(call), nondet_tol=0.0, **fast)
    assert torch.autograd.gradgradcheck(function, tensors_of(call), **fast)


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("layout", ["dense", "permuted"])
def test_opcheck(on, layout, features, device):
    call = sample(3, 5, device, residual=features, weight=features, bias=features)
    x, weight, bias, residual = (call[name] for name in NAMES)
    if layout == "permuted":
        x, residual = permuted(x), None if residual is None else permuted(residual)
    arguments = (x, weight, bias, residual, 1e-3, "silu", x.dtype)
    torch.library.opcheck(torch.ops.rnnkit.layer_norm.default, arguments)
    with torch.no_grad():
        _, total, stats = torch.ops.rnnkit.layer_norm(*arguments)
    v = (total if features else x).detach().requires_grad_()
    dy = permuted(torch.randn_like(v)) if layout == "permuted" else torch.randn_like(v)
    dtotal = torch.randn_like(v).requires_grad_() if features else None
    arguments = (dy.requires_grad_(), dtotal, v, weight, bias, stats, 1e-3, "silu")
    torch.library.opcheck(torch.ops.rnnkit.layer_norm_backward.default, arguments)


def test_fullgraph(on, device):
    torch.compiler.reset()
    call = sample(3, 20, device, activation="silu")

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def compiled(x, weight, bias, residual):
        return layer_norm(x, (x.shape[-1],), weight, bias, 1e-3, residual, "silu", True)

    for M, N in ((3, 20), (4, 7)):
        call = sample(M, N, device, activation="silu")
        found = run(call, lambda **given: compiled(*(given[name] for name in NAMES)))
        assert_same(found, run(call), 1e-12)


@pytest.mark.parametrize("layout", ["sliced", "expanded", "transposed"])
def test_strided_inputs(on, layout, device):
    call = sample(4, 6, device, activation="tanh")

    def move(value):
        if value.dim() == 1:
            wide = torch.stack([value, value], -1).detach()
            return wide[:, 0].requires_grad_()
        if layout == "transposed":
            return permuted(value)
        if layout == "sliced":
            return torch.cat([value, value], -1).detach()[:, :6].requires_grad_()
        return value.detach()[:1].expand(value.shape).requires_grad_()

    strided = with_tensors(call, [move(v) for v in tensors_of(call)])
    dense = with_tensors(call, [v.detach().clone().requires_grad_() for v in tensors_of(strided)])
    assert_same(run(strided), run(dense), 1e-12)


@pytest.mark.parametrize(("M", "N"), [(0, 4), (3, 0), (0, 0)])
def test_empty(on, M, N, device):
    found = run(sample(M, N, device, activation="silu"))
    assert found["y"].shape == found["dx"].shape == found["dresidual"].shape == (M, N)
    assert not found["dweight"].any() and not found["dbias"].any()


def test_bitwise_repeatable_and_backward_twice(on, device):
    call = sample(37, 40, device, activation="silu", dtype=torch.float32)
    y, v = layer_norm(**call)
    loss = y.square().sum() + v.sum()
    first = torch.autograd.grad(loss, tensors_of(call), retain_graph=True)
    second = torch.autograd.grad(loss, tensors_of(call))
    again = layer_norm(**call)
    assert torch.equal(again[0], y) and torch.equal(again[1], v)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("N", [20, 33, 128])
def test_a_row_is_the_same_in_any_batch(on, N, device):
    """Bit for bit, forward and backward, wherever it stands."""
    call = sample(21, N, device, activation="silu", dtype=torch.float32)

    def everything(call):
        y, v = layer_norm(**call)
        gradients = torch.autograd.grad(y.sum() + v.square().sum(), (call["x"], call["residual"]))
        return y, v, *gradients

    whole = everything(call)
    for i in (0, 1, 20):
        rows = {k: call[k].detach()[i : i + 1].requires_grad_() for k in ("x", "residual")}
        for found, expected in zip(everything(call | rows), whole, strict=True):
            assert torch.equal(found[0], expected[i])


def exact(call):
    """The call on the same values in float64."""
    return with_tensors(call, [v.detach().double().requires_grad_() for v in tensors_of(call)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_precision(on, dtype, activation, device):
    if dtype == torch.bfloat16 and device.type == "cpu" and on != "reference":
        pytest.skip("triton's interpreter computes bfloat16 wrongly")
    M, N = 20, 100
    call = sample(M, N, device, activation=activation, dtype=dtype)
    found, expected = run(call), run(exact(call), formula)
    assert {v.dtype for v in found.values()} == {dtype}
    eps = torch.finfo(dtype).eps
    # Each rounds to eps / 2, relative to the largest element, which assert_same divides by: the
    # sum, of which the norm makes an error of the same size; the result; and, in float32, a sum of
    # N terms in a tree, for the mean and the variance, and a few operations of one element.
    roundings = 2 + (2 * math.log2(N) + 8) * torch.finfo(torch.float32).eps / eps
    # The gradients of weight and bias are sums of M elements with independent errors.
    several = {"dweight": M**0.5, "dbias": M**0.5}
    for name, value in expected.items():
        bound = eps / 2 * (roundings + 2) * several.get(name, 1)
        assert_same({name: found[name].double()}, {name: value}, bound)


@pytest.mark.parametrize("N", [20, 100])
def test_the_norm_is_that_of_the_rounded_sum(on, N, device):
    """Bit for bit, as a sum and a norm that are two operators."""
    call = sample(5, N, device, dtype=torch.float16)
    y, v = layer_norm(**call)
    assert torch.equal(v, call["x"] + call["residual"])
    assert torch.equal(y, layer_norm(**call | {"x": v, "residual": None})[0])


def test_autocast_gives_torch_s_dtype(on, device):
    half = torch.float16
    x, weight = torch.randn(3, 8, device=device), torch.ones(8, device=device)
    with torch.autocast(device.type, half):
        for given in (x, x.to(half)):
            expected = torch.nn.functional.layer_norm(given, (8,), weight)
            found = layer_norm(given, 8, weight, residual=torch.zeros_like(given))
            assert found.dtype == expected.dtype
            assert (found.float() - expected.float()).abs().max() < 3 * torch.finfo(half).eps


def test_mixed_dtypes(on, device):
    """Half rows with float32 parameters, and a float32 residual."""
    call = sample(4, 10, device, dtype=torch.float16)
    call |= {k: call[k].detach().float().requires_grad_() for k in ("weight", "bias")}
    found, expected = run(call), run(exact(call), formula)
    assert found["y"].dtype == found["dx"].dtype == torch.float16
    assert found["dweight"].dtype == torch.float32
    assert_same({"y": found["y"]}, {"y": expected["y"]}, 3 * torch.finfo(torch.float16).eps)
    wide = call | {"residual": call["residual"].detach().float().requires_grad_()}
    found, expected = run(wide), run(exact(wide), formula)
    assert found["y"].dtype == found["sum"].dtype == found["dresidual"].dtype == torch.float32
    assert found["dx"].dtype == torch.float16
    assert_same({"y": found["y"]}, {"y": expected["y"]}, 16 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("N", [37, 100, 128])
def test_offset_and_constant_rows(on, N, device):
    eps, roundings = torch.finfo(torch.float32).eps, 1 + math.log2(N)
    x = 1e4 + torch.randn(5, N, device=device)
    y, expected = layer_norm(x, N), torch.nn.functional.layer_norm(x.double(), (N,))
    # The mean's error is relative to the offset, and the deviation is 1.
    assert (y - expected).abs().max() < eps * 1e4 * roundings
    for value in (0.1, -123.4):
        y = layer_norm(torch.full((2, N), value, device=device), N, eps=1e-5)
        assert y.abs().max() <= eps * abs(value) * roundings / 1e-5**0.5


def test_nan_stays_in_its_row(on, device):
    call = sample(5, 40, device, activation="relu")
    x = call["x"].detach().clone()
    x[1, 3] = float("nan")
    found = run(call | {"x": x.requires_grad_()})
    expected = run(call)
    others = [0, 2, 3, 4]
    for name in ("y", "sum", "dx", "dresidual"):
        assert torch.equal(found[name][others], expected[name][others]), name
    assert found["y"][1].isnan().all() and found["dx"][1].isnan().any()


def test_vmap(on, device):
    call = sample(3, 8, device, residual=False, activation="silu", total=False)
    x, weight, bias, _ = (call[name] for name in NAMES)
    xs, more, weights = (torch.randn(4, *v.shape).to(v) for v in (x, x, weight))

    def function(x, weight, residual):
        return layer_norm(x, 8, weight, bias, 1e-3, residual, "silu", True)

    for axes, given in (((0, None, 0), (xs, weight, more)), ((None, 0, None), (x, weights, x))):
        picked = [[v[i] if a == 0 else v for v, a in zip(given, axes, strict=True)] for i in (0, 3)]
        found = vmap(function, axes)(*given)
        for i, arguments in zip((0, 3), picked, strict=True):
            for a, b in zip(found, function(*arguments), strict=True):
                assert (a[i] - b).abs().max() < 1e-12


def test_per_sample_gradients(on, device):
    layer = LayerNorm(8, activation="tanh", dtype=torch.float64, device=device)
    x = torch.randn(4, 3, 8, dtype=torch.float64, device=device)
    check_per_sample_gradients(layer, x)


def test_forward_mode(on, device):
    call = sample(3, 8, device, activation="silu")
    tensors = tuple(v.detach() for v in tensors_of(call))
    tangents = tuple(torch.randn_like(v) for v in tensors)

    def derivative(function):
        return jvp(lambda *v: function(**with_tensors(call, v)), tensors, tangents)[1]

    if on != "reference":
        with pytest.raises(RuntimeError, match="no forward-mode derivatives"):
            derivative(layer_norm)
        return
    for a, b in zip(derivative(layer_norm), derivative(formula), strict=True):
        assert (a - b).abs().max() < 1e-12


def test_forced_torch_is_torch():
    x, more = torch.randn(3, 8), torch.randn(3, 8)
    layer, theirs = LayerNorm(8), torch.nn.LayerNorm(8)
    with rnnkit.backend("torch"):
        assert torch.equal(layer(x), theirs(x))
        y, v = layer(x, more, return_sum=True)
        assert torch.equal(y, theirs(x + more)) and torch.equal(v, x + more)
        with pytest.raises(RuntimeError, match=r"torch: .*bare operator"):
            torch.ops.rnnkit.layer_norm(x, None, None, None, 1e-5, None, x.dtype)


def test_without_a_residual_the_sum_is_the_input(on, device):
    x = torch.randn(3, 8, device=device)
    assert LayerNorm(8, device=device)(x, return_sum=True)[1] is x


def test_explain(capsys):
    layer = LayerNorm(8, activation="silu")
    with rnnkit.backend("triton"):
        dispatch.explain(layer, torch.randn(3, 8))
    said = capsys.readouterr().out
    assert "layer_norm M=3 N=8 silu float32 on cpu: triton" in said and said.count("triton:") == 1
    assert "torch: torch.nn.functional.layer_norm" in said
    assert "triton: rows are read once up to N = 16384 forward and 4096 backward" in said


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (TypeError, "x: expected a floating-point", {"x": torch.ones(2, 4, dtype=torch.int64)}),
        (TypeError, "bias: expected a floating", {"bias": torch.ones(4, dtype=torch.int64)}),
        (ValueError, "residual must have .* shape", {"residual": torch.ones(4)}),
        (ValueError, "weight: expected device cpu", {"weight": torch.ones(4, device="meta")}),
        (ValueError, "activation must be one of", {"activation": "gelu"}),
        (ValueError, "normalized_shape must be", {"normalized_shape": ()}),
        (RuntimeError, r"normalized_shape=\[5\].* size\[2, 4\]", {"normalized_shape": 5}),
        (RuntimeError, r"weight to be .* shape \[5\]", {"weight": torch.ones(5)}),
    ],
)
def test_errors_name_the_argument(error, match, change):
    given = {"x": torch.ones(2, 4), "normalized_shape": 4} | change
    with pytest.raises(error, match=match):
        layer_norm(**given)


def test_gradients_add_up_in_place(on, device):
    more = {"dtype": torch.float64, "device": device}
    shapes = {"x": (2, 3, 5), "residual": (2, 3, 5), "weight": (5,), "bias": (5,)}
    values = {name: torch.randn(*shape, **more) for name, shape in shapes.items()}
    cotangent = torch.randn(2, 3, 5, **more)

    def prepare():
        given = {name: v.clone().requires_grad_() for name, v in values.items()}
        return given, lambda: layer_norm(normalized_shape=(5,), **given).backward(cotangent)

    assert_gradients_add_up(prepare)
