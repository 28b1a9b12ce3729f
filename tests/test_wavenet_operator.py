"""The operator of WaveNet's blocks: every backend, for every kind of stack."""

import random

import pytest
import torch
import torch.nn.functional as F
from operator_calls import assert_same, pairs, permuted, rms
from torch.func import grad, jvp, vmap

import rnnkit
from rnnkit import dispatch
from rnnkit.ops.wavenet import wavenet
from rnnkit.triton import wavenet as kernels

PARAMETERS = ("w", "b", "r", "rb")


@pytest.fixture(params=["reference", "triton", "pieces"])
def on(request, monkeypatch):
    """One backend; "pieces" is triton where no program has all channels."""
    if request.param == "pieces":
        monkeypatch.setattr(kernels, "fused", lambda *_: False)
    with rnnkit.backend("reference" if request.param == "reference" else "triton"):
        yield request.param


def sample(
    device, N=2, C=8, L=9, K=2, dilations=(1, 4), last=False, condition=None, dtype=torch.float64
):
    """The arguments of a call by name, the tensors as leaves; condition: its steps, 1 or "L"."""
    D = len(dilations)

    def draw(*shape, scale=1.0):
        value = torch.randn(shape, dtype=torch.float64) * scale
        return value.to(device, dtype).requires_grad_()

    R = D if last else D - 1
    return {
        "x": draw(N, C, L),
        "w": [draw(2 * C, C, K, scale=(C * K) ** -0.5) for _ in range(D)],
        "b": [draw(2 * C) for _ in range(D)],
        "r": [draw(C, C, scale=C**-0.5) for _ in range(R)],
        "rb": [draw(C) for _ in range(R)],
        "condition": None
        if condition is None
        else draw(N, 2 * D * C, L if condition == "L" else 1),
        "dilations": dilations,
    }


def equations(x, w, b, r, rb, condition, dilations):
    """Equation 2 and figure 3 of the paper."""
    xs, zs, C = [], [], x.shape[1]
    for i, dilation in enumerate(dilations):
        past = (w[i].shape[2] - 1) * dilation
        a = F.conv1d(F.pad(x, (past, 0)), w[i], b[i], dilation=dilation)
        if condition is not None:
            a = a + condition[:, 2 * C * i : 2 * C * (i + 1)]
        zs.append(torch.tanh(a[:, :C]) * torch.sigmoid(a[:, C:]))
        if i < len(r):
            x = x + torch.einsum("oc,nct->not", r[i], zs[i]) + rb[i][:, None]
            xs.append(x)
    return xs, torch.cat(zs, 1)


def leaves(call):
    """The tensors of a call by name."""
    named = {"x": call["x"], "condition": call["condition"]}
    for name in PARAMETERS:
        named |= {f"{name}{i}": v for i, v in enumerate(call[name])}
    return {k: v for k, v in named.items() if v is not None}


def rebuilt(call, tensors):
    """The call with other tensors, in the order of `leaves`."""
    values = dict(zip(leaves(call), tensors, strict=True))
    lists = {k: [values[f"{k}{i}"] for i in range(len(call[k]))] for k in PARAMETERS}
    return call | lists | {k: values.get(k) for k in ("x", "condition")}


def run(call, function=wavenet, use=("xs", "z")):
    """Results, and the gradients of what is used under random cotangents, by name."""
    xs, z = function(**call)
    found = {f"x_{i}": v for i, v in enumerate(xs)} | {"z": z}
    generator, loss = torch.Generator().manual_seed(1), 0.0
    for name, value in found.items():
        cotangent = torch.randn(value.shape, dtype=torch.float64, generator=generator).to(value)
        if ("z" if name == "z" else "xs") in use:
            loss = loss + (value * cotangent).sum()
    named = leaves(call)
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    for (name, leaf), value in zip(named.items(), gradients, strict=True):
        found[f"d{name}"] = torch.zeros_like(leaf) if value is None else value
    return found


def problems(count):
    draw = random.Random(7)
    for _ in range(count):
        L, D = draw.choice([1, 2, 5, 20, 70]), draw.choice([1, 2, 3])
        problem = {
            "N": draw.choice([1, 2]),
            "C": draw.choice([3, 8, 16, 20, 33, 70]),
            "L": L,
            "K": draw.choice([1, 2, 3]),
            "dilations": tuple(draw.choice([1, 2, 4, 9]) for _ in range(D)),
            "last": draw.random() < 0.5,
            "condition": draw.choice([None, 1, "L"]),
        }
        use = draw.choice([("z",), ("xs", "z")])
        yield pytest.param(problem, use, id="-".join(str(v) for v in problem.values()))


@pytest.mark.parametrize(("problem", "use"), list(problems(14)))
def test_equals_the_equations(on, problem, use, device):
    call = sample(device, **problem)
    assert_same(run(call, use=use), run(call, equations, use), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "use"), list(problems(120)))
def test_equals_the_equations_everywhere(on, problem, use, device):
    call = sample(device, **problem)
    assert_same(run(call, use=use), run(call, equations, use), 1e-10)


def test_gradient_of_what_goes_on_alone(on, device):
    call = sample(device, last=True, condition="L")
    assert_same(run(call, use=("xs",)), run(call, equations, ("xs",)), 1e-10)


KINDS = {
    "plain": {},
    "last": {"last": True, "condition": 1},
    "condition": {"condition": "L", "K": 3},
    "one block": {"dilations": (2,)},
}
heavy = pairs("condition", KINDS, ("reference", "triton", "pieces"))


@heavy
def test_gradcheck_and_gradgradcheck(on, kind, device):
    call = sample(device, 1, 8, 3, **KINDS[kind] | {"dilations": (2,), "K": 2})

    def function(*tensors):
        xs, z = wavenet(**rebuilt(call, tensors))
        return (*xs, z)

    fast = {"fast_mode": True, "check_undefined_grad": on == "reference"}
    tensors = tuple(leaves(call).values())
    assert torch.autograd.gradcheck(function, tensors, nondet_tol=0.0, **fast)
    assert torch.autograd.gradgradcheck(function, tensors, **fast)


def stacked(call, move=lambda v: v):
    """The operator's own arguments."""
    C = call["x"].shape[1]
    none = {"r": torch.empty(0, C, C).to(call["x"]), "rb": torch.empty(0, C).to(call["x"])}
    many = [torch.stack(call[k]) if call[k] else none[k] for k in PARAMETERS]
    tensors = [call["x"], *many, call["condition"]]
    tensors = [None if v is None else move(v.detach().requires_grad_()) for v in tensors]
    return *tensors, list(call["dilations"])


@heavy
@pytest.mark.parametrize("layout", [pytest.param("dense", marks=pytest.mark.slow), "permuted"])
def test_opcheck(on, kind, layout, device):
    call = sample(device, 2, 8, 4, **KINDS[kind])
    move = permuted if layout == "permuted" else lambda v: v
    arguments = stacked(call, move)
    torch.library.opcheck(torch.ops.rnnkit.wavenet.default, arguments)
    with torch.no_grad():
        xs, z = torch.ops.rnnkit.wavenet(*arguments)
    dxs, dz = (move(torch.randn_like(v).requires_grad_()) for v in (xs, z))
    states = [v.detach().requires_grad_() for v in (xs, z)]
    given = (None if kind == "plain" else dxs, dz, *states, *arguments)
    torch.library.opcheck(torch.ops.rnnkit.wavenet_backward.default, given)


@heavy
def test_fullgraph(on, kind, device):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def compiled(x, w, b, r, rb, condition, dilations):
        return wavenet(x, w, b, r, rb, condition, dilations)

    for L in (9, 6):
        call = sample(device, 2, 8, L, **KINDS[kind])
        assert_same(run(call, compiled), run(call), 1e-12)


@heavy
@pytest.mark.parametrize("layout", ["sliced", "expanded", "permuted"])
def test_strided_inputs(on, kind, layout, device):
    call = sample(device, 2, 8, 4, **KINDS[kind])

    def move(value):
        if value.dim() == 1 or layout == "sliced":
            return torch.stack([value, value], -1).detach()[..., 0].requires_grad_()
        if layout == "permuted":
            return permuted(value)
        return value.detach()[:1].expand(value.shape).requires_grad_()

    strided = rebuilt(call, [move(v) for v in leaves(call).values()])
    copies = [v.detach().clone().requires_grad_() for v in leaves(strided).values()]
    assert_same(run(strided), run(rebuilt(call, copies)), 1e-12)


@pytest.mark.parametrize(("N", "L"), [(0, 5), (2, 0)])
def test_empty(on, N, L, device):
    found = run(sample(device, N, 8, L, last=True, condition="L"))
    assert found["z"].shape == (N, 16, L) and found["x_1"].shape == (N, 8, L)
    assert not any(v.any() for k, v in found.items() if k.startswith(("dw", "db", "dr")))


@heavy
def test_bitwise_repeatable_and_backward_twice(on, kind, device):
    call = sample(device, L=70, dtype=torch.float32, **KINDS[kind])
    tensors = tuple(leaves(call).values())
    _, z = wavenet(**call)
    first = torch.autograd.grad(z.square().sum(), tensors, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(z.square().sum(), tensors, allow_unused=True)
    assert torch.equal(wavenet(**call)[1], z)
    assert all(a is b or torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_precision(on, dtype, device):
    if dtype == torch.bfloat16 and device.type == "cpu" and on != "reference":
        pytest.skip("triton's interpreter computes bfloat16 wrongly")
    call = sample(device, L=40, condition=1, last=True, dtype=dtype)
    exact = rebuilt(call, [v.detach().double().requires_grad_() for v in leaves(call).values()])
    found, expected = run(call), run(exact, equations)
    assert {v.dtype for v in found.values()} == {dtype}
    eps = torch.finfo(dtype).eps
    for name, value in expected.items():
        # Each of two blocks rounds its gate and its sum, and in backward three gradients: a dozen
        # independent roundings of half an eps at most, for each element of what is summed.
        assert rms(found[name].double() - value) < 3 * eps * rms(value), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("condition", [None, 1, "L"])
@pytest.mark.parametrize("C", [20, 64, 128, 256])
def test_matrix_units(dtype, condition, C, device):
    """The forms that only a GPU compiles: many channels and tiles, and TF32."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    call = sample(device, 3, C, 300, 3, (1, 8, 64), condition=condition, dtype=dtype)
    exact = rebuilt(call, [v.detach().double().requires_grad_() for v in leaves(call).values()])
    with torch.backends.cudnn.flags(allow_tf32=True), rnnkit.backend("triton"):
        found = run(call)
    # TF32 has float16's mantissa. A dozen and a half of roundings, as in test_precision.
    eps = torch.finfo(torch.bfloat16 if dtype == torch.bfloat16 else torch.float16).eps
    for name, value in run(exact, equations).items():
        assert rms(found[name].double() - value) < 6 * eps * rms(value), name


def test_vmap(on, device):
    call = sample(device, condition=1)
    single = [v.detach() for v in leaves(call).values()]
    many = [torch.randn(3, *v.shape, dtype=torch.float64).to(v) for v in single]
    names = list(leaves(call))

    def function(*tensors):
        return wavenet(**rebuilt(call, tensors))[1]

    for mapped in (["x"], ["x", "condition"], ["w0"], names):
        axes = tuple(0 if name in mapped else None for name in names)
        given = [m if a == 0 else s for a, m, s in zip(axes, many, single, strict=True)]
        found = vmap(function, axes)(*given)
        for i in range(3):
            one = [v[i] if a == 0 else v for a, v in zip(axes, given, strict=True)]
            assert (found[i] - function(*one)).abs().max() < 1e-12


def test_per_sample_gradients(on, device):
    call = sample(device, 1, condition=1)
    single = [v.detach() for v in leaves(call).values()]
    xs = torch.randn(3, *single[0].shape, dtype=torch.float64).to(single[0])

    def loss(w0, x):
        tensors = dict(zip(leaves(call), single, strict=True)) | {"x": x, "w0": w0}
        return wavenet(**rebuilt(call, tensors.values()))[1].square().sum()

    w0 = call["w"][0].detach()
    found = vmap(grad(loss), (None, 0))(w0, xs)
    for i in range(3):
        assert (found[i] - grad(loss)(w0, xs[i])).abs().max() < 1e-12


def test_forward_mode(on, device):
    call = sample(device, condition=1)
    tensors = tuple(v.detach() for v in leaves(call).values())
    tangents = tuple(torch.randn_like(v) for v in tensors)

    def derivative(function):
        return jvp(lambda *v: function(**rebuilt(call, v))[1], tensors, tangents)[1]

    if on != "reference":
        with pytest.raises(RuntimeError, match="no forward-mode derivatives"):
            derivative(wavenet)
        return
    assert (derivative(wavenet) - derivative(equations)).abs().max() < 1e-12


def test_a_model_runs_its_blocks_as_one(on, capsys, device):
    model = rnnkit.WaveNet(1, 2, 8, layers=2, blocks=2, device=device)
    dispatch.explain(model, torch.randn(2, 1, 6, device=device))
    said = capsys.readouterr().out
    assert said.count("wavenet N=2 C=8 K=2 L=6 blocks=4 dilation=2 float32") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 8)}, r"x must be \(N, C, L\) and floating, got \(2, 8\)"),
        ({"w": []}, r"w must be of one block at least"),
        ({"w": [torch.zeros(16, 8, 2)]}, r"r must be|b must be of 1 blocks, got 2"),
        ({"w": [torch.zeros(15, 8, 2)] * 2}, r"w\[0\] must be \(16, 8, 2\), got \(15, 8, 2\)"),
        ({"r": []}, r"r must be of D = 2 blocks, or of all but the last, got 0"),
        ({"rb": [torch.zeros(7)]}, r"rb\[0\] must be \(8,\), got \(7,\)"),
        ({"dilations": (1, 2, 4)}, r"dilations must be of 2 blocks, got 3"),
        ({"dilations": (1, -1)}, r"dilations must be an integer of at least 1, got -1"),
        ({"condition": torch.zeros(1, 32, 9)}, r"condition must be \(2, 32, 9 or 1\), got \(1"),
        ({"condition": torch.zeros(2, 32, 3)}, r"condition must be \(2, 32, 9 or 1\), got"),
    ],
)
@pytest.mark.parametrize("name", ["torch", "reference"])
def test_errors(name, change, message):
    call = sample("cpu", dtype=torch.float32)
    with rnnkit.backend(name), pytest.raises(ValueError, match=message):
        wavenet(**call | change)
