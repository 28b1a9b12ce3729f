"""The operator of the causal convolution: every backend, for every kind of problem."""

import random

import pytest
import torch
import torch.nn.functional as F
from operator_calls import assert_same, check_per_sample_gradients, pairs, permuted, rms
from test_conv import ACTIVATE, taps
from torch.func import jvp, vmap

import rnnkit
from rnnkit import dispatch
from rnnkit.layers.conv import CausalConv1d
from rnnkit.ops.causal_conv1d import causal_conv1d
from rnnkit.triton import causal_conv1d as kernels
from rnnkit.triton import convolution

NAMES = ("x", "weight", "bias", "state")


BACKENDS = ("reference", "triton", "sums")


@pytest.fixture(params=BACKENDS)
def on(request, monkeypatch):
    """One backend; "sums" is triton without matrix products, as on a GPU in float64."""
    if request.param == "sums":
        monkeypatch.setattr(convolution, "FEW", 2**30)
    with rnnkit.backend("reference" if request.param == "reference" else "triton"):
        yield request.param


def sample(
    device, N=2, C=4, O=6, K=3, L=9, stride=1, dilation=2, groups=1, activation=None,  # noqa: E741
    bias=True, state=True, channels_last=False, dtype=torch.float64,
):  # fmt: skip
    """The arguments of a call by name, the tensors as leaves; O counts the rows of the weight."""
    past = (N, C, (K - 1) * dilation)
    shapes = {"x": (N, C, L), "weight": (O, C // groups, K), "bias": (O,), "state": past}
    given = {"bias": bias, "state": state}
    call = {
        name: torch.randn(shape, dtype=torch.float64).to(device, dtype).requires_grad_()
        if given.get(name, True)
        else None
        for name, shape in shapes.items()
    }
    if channels_last:
        call["x"] = permuted(call["x"])
    more = {"stride": stride, "dilation": dilation, "groups": groups, "activation": activation}
    return call | more | {"channels_last": channels_last}


def definition(channels_last, **call):
    """By taps, in any dtype; the layout of the result is no part of it."""
    return taps(**call)


def padded(channels_last, x, weight, bias, state, stride, dilation, groups, activation):
    """By torch's convolution on a left-padded input."""
    context = (weight.shape[2] - 1) * dilation
    x = F.pad(x, (context, 0)) if state is None else torch.cat([state, x], 2)
    return ACTIVATE[activation](F.conv1d(x, weight, bias, stride, 0, dilation, groups))


def run(call, function=causal_conv1d):
    """The result and the gradients under a random cotangent, by name."""
    y = function(**call)
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y)
    leaves = {name: call[name] for name in NAMES if call[name] is not None}
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y} | {f"d{k}": v for k, v in zip(leaves, gradients, strict=True)}


def problems(count):
    """A seeded sweep: few and many channels, dense, grouped and depthwise, short and long."""
    draw = random.Random(5)
    for i in range(count):
        groups = draw.choice([1, 1, 1, 2, 3, 6])
        activation = list(ACTIVATE)[i % 5]
        problem = {
            "N": draw.choice([1, 2]),
            "C": groups * draw.choice([1, 1, 2, 5, 17]),
            "O": groups * draw.choice([1, 2, 3, 9, 20]) * (2 if activation == "gated" else 1),
            "K": draw.randint(1, 4),
            # Of most, the receptive field is longer.
            "L": draw.choice([1, 2, 3, 7, 20, 70]),
            "stride": draw.choice([1, 1, 2, 3]),
            "dilation": draw.choice([1, 2, 5, 9]),
            "groups": groups,
            "activation": activation,
            "bias": draw.random() < 0.7,
            "state": draw.random() < 0.5,
            "channels_last": draw.random() < 0.5,
        }
        yield pytest.param(problem, id="-".join(str(v) for v in problem.values()))


@pytest.mark.parametrize("problem", list(problems(10)))
def test_equals_the_definition(on, problem, device):
    call = sample(device, **problem)
    assert_same(run(call), run(call, definition), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("problem", list(problems(300)))
def test_equals_torch_everywhere(on, problem, device):
    call = sample(device, **problem)
    assert_same(run(call), run(call, padded), 1e-10)


@pytest.mark.parametrize("K", [2, 3, 4])
@pytest.mark.parametrize("state", [False, True])
def test_depthwise_is_causal_conv1d_of_mamba(on, K, state, device):
    """silu of a depthwise convolution of width 2 to 4 without dilation, from an initial state."""
    call = sample(device, 2, 70, 70, K, 12, 1, 1, 70, "silu", state=state)

    def theirs(x, weight, bias, state, **_):
        width, L = weight.shape[2], x.shape[2]
        if state is None:
            out = F.conv1d(x, weight, bias, padding=width - 1, groups=x.shape[1])[..., :L]
        else:
            seen = torch.cat([state, x], -1)
            out = F.conv1d(seen, weight, bias, groups=x.shape[1])
        return F.silu(out)

    assert_same(run(call), run(call, theirs), 1e-10)


def tensors_of(call):
    return tuple(call[name] for name in NAMES if call[name] is not None)


def with_tensors(call, tensors):
    names = [name for name in NAMES if call[name] is not None]
    return call | dict(zip(names, tensors, strict=True))


KINDS = {
    "plain": {},
    "gated": {"O": 8, "activation": "gated"},
    "strided groups": {"groups": 2, "stride": 2, "activation": "tanh", "channels_last": True},
    "depthwise gate": {"O": 8, "groups": 4, "activation": "gated", "bias": False},
    "gate in pieces": {"O": 8, "groups": 2, "activation": "gated", "state": False},
}
kinds = pytest.mark.parametrize("kind", KINDS)


heavy = pairs("gated", KINDS, BACKENDS)


@heavy
def test_gradcheck_and_gradgradcheck(on, kind, device):
    call = sample(device, 1, K=2, L=3, **KINDS[kind])

    def function(*tensors):
        return causal_conv1d(**with_tensors(call, tensors))

    fast = {"fast_mode": True, "check_undefined_grad": on == "reference"}
    assert torch.autograd.gradcheck(function, tensors_of(call), nondet_tol=0.0, **fast)
    assert torch.autograd.gradgradcheck(function, tensors_of(call), **fast)


@heavy
@pytest.mark.parametrize("layout", [pytest.param("dense", marks=pytest.mark.slow), "permuted"])
def test_opcheck(on, kind, layout, device):
    call = sample(device, K=2, L=3, **KINDS[kind])
    move = permuted if layout == "permuted" else lambda v: v
    tensors = [move(call[name]) for name in NAMES]
    static = [call[k] for k in ("stride", "dilation", "groups", "activation", "channels_last")]
    torch.library.opcheck(torch.ops.rnnkit.causal_conv1d.default, (*tensors, *static))
    dy = move(torch.randn_like(causal_conv1d(**call)).requires_grad_())
    backward = torch.ops.rnnkit.causal_conv1d_backward.default
    torch.library.opcheck(backward, (dy, *tensors, *static, [True, True]))


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "state"])
def test_gradient_of_one_argument_alone(on, wanted, device):
    call = sample(device, O=8, activation="gated")
    expected = run(call)[f"d{wanted}"]
    alone = {k: v.detach() if k in NAMES and k != wanted else v for k, v in call.items()}
    y = causal_conv1d(**alone)
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y)
    assert torch.equal(torch.autograd.grad(y, alone[wanted], dy)[0], expected)


@heavy
def test_fullgraph(on, kind, device):
    torch.compiler.reset()
    static = {k: v for k, v in sample(device, **KINDS[kind]).items() if k not in NAMES}

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def compiled(x, weight, bias, state):
        return causal_conv1d(x, weight, bias, state=state, **static)

    for N, L in ((2, 9), (3, 6)):
        call = sample(device, N=N, L=L, **KINDS[kind])
        found = run(call, lambda **given: compiled(*(given[name] for name in NAMES)))
        assert_same(found, run(call), 1e-12)


@pytest.mark.parametrize("layout", ["sliced", "expanded", "permuted"])
@heavy
def test_strided_inputs(on, kind, layout, device):
    call = sample(device, **KINDS[kind])

    def move(value):
        if value.dim() == 1 or layout == "sliced":
            return torch.stack([value, value], -1).detach()[..., 0].requires_grad_()
        if layout == "permuted":
            return permuted(value)
        return value.detach()[:1].expand(value.shape).requires_grad_()

    strided = with_tensors(call, [move(v) for v in tensors_of(call)])
    dense = with_tensors(call, [v.detach().clone().requires_grad_() for v in tensors_of(strided)])
    assert_same(run(strided), run(dense), 1e-12)


@pytest.mark.parametrize("channels_last", [False, True])
def test_layout_of_the_result(on, channels_last, device):
    call = sample(device, channels_last=channels_last)
    found = run(call)
    for name in ("y", "dx"):
        assert found[name].stride(1 if channels_last else 2) == 1, name


@pytest.mark.parametrize(("N", "L"), [(0, 5), (2, 0), (0, 0)])
def test_empty(on, N, L, device):
    found = run(sample(device, N=N, L=L, O=8, activation="gated"))
    assert found["y"].shape == (N, 4, L) and found["dx"].shape == (N, 4, L)
    for name in ("dweight", "dbias", "dstate"):
        assert not found[name].any(), name


@heavy
def test_bitwise_repeatable_and_backward_twice(on, kind, device):
    call = sample(device, L=80, dtype=torch.float32, **KINDS[kind])
    y = causal_conv1d(**call)
    first = torch.autograd.grad(y.square().sum(), tensors_of(call), retain_graph=True)
    second = torch.autograd.grad(y.square().sum(), tensors_of(call))
    assert torch.equal(causal_conv1d(**call), y)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pairs("gated", ["gated", "depthwise gate", "gate in pieces"], BACKENDS)
def test_chunks_equal_the_whole_bit_for_bit(on, kind, device):
    """In float64, forward: an output depends on nothing but its own taps."""
    C = 24
    given = {k: v for k, v in KINDS[kind].items() if k != "groups"} | {"C": C}
    groups = {"gated": 1, "depthwise gate": C, "gate in pieces": 2}[kind]
    call = sample(device, L=70, groups=groups, **given | {"state": False, "O": 2 * C})
    with torch.no_grad():
        whole = causal_conv1d(**call)
        seen = torch.cat([call["x"].new_zeros(2, C, 4), call["x"]], 2)
        for first, last in ((0, 1), (1, 2), (5, 6), (6, 33), (33, 70)):
            chunk = {"x": seen[..., 4 + first : 4 + last], "state": seen[..., first : first + 4]}
            assert torch.equal(causal_conv1d(**call | chunk), whole[..., first:last]), first
        for n in (0, 1):
            row = {"x": call["x"][n : n + 1]}
            assert torch.equal(causal_conv1d(**call | row), whole[n : n + 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@kinds
def test_precision(on, kind, dtype, device):
    if dtype == torch.bfloat16 and device.type == "cpu" and on != "reference":
        pytest.skip("triton's interpreter computes bfloat16 wrongly")
    call = sample(device, L=40, dtype=dtype, **KINDS[kind])
    exact = with_tensors(call, [v.detach().double().requires_grad_() for v in tensors_of(call)])
    found, expected = run(call), run(exact, definition)
    assert {v.dtype for v in found.values()} == {dtype}
    eps, terms = torch.finfo(dtype).eps, {"y": 1, "dx": 3 * 8, "dstate": 3 * 8}
    # What goes out is rounded, as is the gradient of the sums before it, of which the others are
    # sums of so many terms with independent errors; float32 sums add errors of their own.
    for name, value in expected.items():
        count = terms.get(name, 2 * 40)
        bound = 2 * eps * count**0.5 + 4 * torch.finfo(torch.float32).eps * count**0.5
        assert_same({name: found[name].double()}, {name: value}, bound)


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("activation", list(ACTIVATE))
def test_saturation(on, activation, size, device):
    call = sample(device, O=8, activation=activation, dtype=torch.float32)
    call["x"] = torch.full_like(call["x"], size).requires_grad_()
    for name, value in run(call).items():
        assert value.isfinite().all(), name


def test_nan_reaches_only_what_sees_it(on, device):
    call = sample(device, activation="relu", state=False)
    x = call["x"].detach().clone()
    x[0, :, 5] = float("nan")
    y, expected = causal_conv1d(**call | {"x": x}), causal_conv1d(**call)
    sees = torch.zeros(9, dtype=torch.bool, device=device)
    sees[[5, 7]] = True
    assert y[0][:, sees].isnan().all()
    assert torch.equal(y[0][:, ~sees], expected[0][:, ~sees])
    assert torch.equal(y[1], expected[1])


@heavy
def test_vmap(on, kind, device):
    call = sample(device, **KINDS[kind])
    single = {k: v.detach() for k, v in call.items() if k in NAMES and v is not None}
    many = {k: torch.randn(3, *v.shape, dtype=torch.float64).to(v) for k, v in single.items()}

    def function(given):
        return causal_conv1d(**call | given)

    for mapped in (["x"], ["weight"], list(single)):
        axes = {k: 0 if k in mapped else None for k in single}
        given = {k: many[k] if k in mapped else single[k] for k in single}
        found = vmap(function, (axes,))(given)
        for i in range(3):
            one = {k: v[i] if k in mapped else v for k, v in given.items()}
            assert (found[i] - function(one)).abs().max() < 1e-12


def test_per_sample_gradients(on, device):
    layer = CausalConv1d(2, 3, 2, activation="gated", dtype=torch.float64, device=device)
    x = torch.randn(4, 2, 5, dtype=torch.float64, device=device)
    check_per_sample_gradients(layer, x)


def test_forward_mode(on, device):
    call = sample(device, O=8, activation="gated")
    tensors = tuple(v.detach() for v in tensors_of(call))
    tangents = tuple(torch.randn_like(v) for v in tensors)

    def derivative(function):
        return jvp(lambda *v: function(**with_tensors(call, v)), tensors, tangents)[1]

    if on != "reference":
        with pytest.raises(RuntimeError, match="no forward-mode derivatives"):
            derivative(causal_conv1d)
        return
    assert (derivative(causal_conv1d) - derivative(padded)).abs().max() < 1e-12


def test_autocast_gives_torch_s_dtype(on, device):
    call = sample(device, O=8, activation="gated", dtype=torch.float32)
    with torch.autocast(device.type, torch.float16):
        y = causal_conv1d(**call)
        assert y.dtype == torch.float16
        gradients = torch.autograd.grad(y.float().sum(), tensors_of(call))
    assert {v.dtype for v in gradients} == {torch.float32}
    with torch.autocast(device.type, torch.float16):
        assert causal_conv1d(**sample(device)).dtype == torch.float64  # as torch.nn's
    assert (y.float() - causal_conv1d(**call)).abs().max() < 8 * torch.finfo(torch.float16).eps


def test_explain(capsys):
    layer = CausalConv1d(8, 8, 2, dilation=4, activation="silu")
    with rnnkit.backend("triton"):
        dispatch.explain(layer, torch.randn(2, 8, 5))
    said = capsys.readouterr().out
    problem = "causal_conv1d N=2 C=8 O=8 K=2 L=5 stride=1 dilation=4 groups=1 silu float32 on cpu"
    assert f"{problem}: triton" in said and said.count("triton") == 1
    assert "torch: torch.nn.functional.conv1d on a left-padded copy" in said
    with rnnkit.backend("reference"):
        dispatch.explain(layer.double(), torch.randn(2, 8, 5).double())
    assert "in float64, chunks and steps equal the whole" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_dtype_errors(on, name, device):
    call = sample(device)
    with pytest.raises(TypeError, match=f"{name} must have x's dtype torch.float64, got .*32"):
        causal_conv1d(**call | {name: call[name].float()})
    with pytest.raises(TypeError, match="x must have a floating-point dtype"):
        causal_conv1d(**call | {"x": torch.ones(2, 4, 9, dtype=torch.int64, device=device)})


def test_sizes_beyond_32_bits_are_refused():
    problem = dispatch.LayerProblem(
        "causal_conv1d",
        (("N", 1), ("C", 2**11), ("O", 4), ("K", 1), ("L", 2**20), ("dilation", 1)), None,
        torch.float32, torch.device("cuda"),
    )  # fmt: skip
    assert "2**31" in kernels.why_not(problem)


def test_far_strides(on, device):
    """A row that spans more than 32 bits count is copied, not read at wrapped offsets."""
    if device.type != "cpu":
        pytest.skip("takes memory that only a CPU gives without touching it")
    # A storage, other than a tensor, is not filled with NaN: only what is next to the rows is.
    storage = torch.UntypedStorage(2 * (15 * 2**28 + 64))
    rows = torch.empty(0, dtype=torch.float16).set_(storage, 0, (1, 16, 64), (1, 2**28, 1))
    x = rows.fill_(float("nan"))[..., :9].copy_(torch.randn(1, 16, 9))
    weight = torch.randn(4, 16, 2, dtype=torch.float16)
    y, expected = causal_conv1d(x, weight), causal_conv1d(x.contiguous(), weight)
    assert torch.equal(y, expected)


def test_an_infinite_input_that_no_output_reads_reaches_no_weight(on, device):
    call = sample(device, dilation=4, state=False)
    x = call["x"].detach().clone()
    x[0, :, 8] = float("inf")
    y = causal_conv1d(**call | {"x": x})
    dy = torch.ones_like(y)
    dy[..., 8] = 0
    (dweight,) = torch.autograd.grad(y, call["weight"], dy)
    assert dweight[..., :2].isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("C", [32, 100, 256])
def test_matrix_units(dtype, channels_last, C, device):
    """The forms that only a GPU compiles: many channels and tiles, and TF32."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    sizes = {"N": 3, "C": C, "O": 2 * C, "L": 300, "dilation": 5}
    call = sample(device, dtype=dtype, activation="gated", channels_last=channels_last, **sizes)
    call["weight"] = (call["weight"].detach() * (3 * C) ** -0.5).requires_grad_()
    exact = with_tensors(call, [v.detach().double().requires_grad_() for v in tensors_of(call)])
    with torch.backends.cudnn.flags(allow_tf32=True), rnnkit.backend("triton"):
        found = run(call)
    # TF32 has float16's mantissa. Roundings are independent: a few of them for each element.
    eps = torch.finfo(torch.bfloat16 if dtype == torch.bfloat16 else torch.float16).eps
    for name, value in run(exact, definition).items():
        assert rms(found[name].double() - value) < 4 * eps * rms(value), name
