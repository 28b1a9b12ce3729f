"""What only a GPU shows of the CUDA kernels: streams, graphs, races, far offsets."""

import shutil
import subprocess
import sys

import pytest
import torch
from problems import Kind, differentiable, sample
from test_cuda_kernels import ALONE, pin
from test_scan import NAMES, assert_same

import rnnkit
from rnnkit.cuda import scan as cuda_scan
from rnnkit.cuda.plan import Gpu
from rnnkit.ops.scan import STATES, scan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = {"T": 20, "B": 40, "H": 256}
CELLS = ["gru", "lstm"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(params=["through L2", "in clusters", "stepwise"])
def form(request, monkeypatch):
    """The last on a GPU that has no room for the others."""
    if request.param == "stepwise":
        monkeypatch.setattr(cuda_scan, "gpu_of", lambda device: Gpu(0, 0))
        return
    cluster, gpu = request.param == "in clusters", cuda_scan.gpu_of(torch.device("cuda", 0))
    if cluster and len(gpu.clusters) < 16:
        pytest.skip("the GPU has no clusters of 16 blocks")
    pin(monkeypatch, gpu, (1, "cluster" if cluster else "L2"))


def problem(cell, dtype=torch.bfloat16, device="cuda", **kwargs):
    return sample(cell, Kind((False, True), sizes=SIZES, **kwargs), dtype, device)


def call(inputs, name="cuda"):
    """Results and gradients by name, without a copy from or to the host."""
    with rnnkit.backend(name):
        results = scan(*inputs)
        given = [torch.arange(v.numel(), device=v.device).sin().view_as(v).to(v) for v in results]
        gradients = torch.autograd.grad(results, differentiable(inputs), given)
    names = [f"d{name}" for name in NAMES if getattr(inputs, name) is not None]
    return dict(zip((*STATES, *names), (*results, *gradients), strict=True))


def same(found, expected):
    return all(torch.equal(found[name], v) for name, v in expected.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plain", CELLS)
def test_many_times_the_same(plain, dtype, form):
    """A race between blocks would show in some of hundreds of repetitions."""
    inputs = problem(plain, dtype, lengths=tuple(range(1, 21)) * 2)
    expected = call(inputs)
    assert all(same(call(inputs), expected) for _ in range(300))


@pytest.mark.parametrize("blocks", range(1, 17))
def test_clusters_of_any_size(blocks, monkeypatch):
    gpu = cuda_scan.gpu_of(torch.device("cuda", 0))
    if blocks > len(gpu.clusters):
        pytest.skip(f"the GPU has clusters of up to {len(gpu.clusters)} blocks")
    pin(monkeypatch, gpu, (1, "cluster"))
    sizes = {"T": 5, "B": 20, "H": 16 * blocks - 5}
    inputs = sample("lstm", Kind((False, True), sizes=sizes), torch.float32, "cuda")
    assert_same(call(inputs), call(inputs, "reference"), 1e-2)


@pytest.mark.parametrize("H", [20, 64, 70, 128])
@pytest.mark.parametrize("plain", [*CELLS, "gru_before", "lstm_peephole"])
def test_a_block_by_itself(plain, H, monkeypatch):
    """More rows than run at once."""
    pin(monkeypatch, cuda_scan.gpu_of(torch.device("cuda", 0)), *ALONE)
    sizes = {"T": 20, "B": 300, "H": H}
    inputs = sample(plain, Kind((False, True), sizes=sizes), torch.float32, "cuda")
    expected = call(inputs)
    assert_same(expected, call(inputs, "reference"), 1e-2)
    assert all(same(call(inputs), expected) for _ in range(300))


@pytest.mark.parametrize("plain", CELLS)
def test_beside_other_work(plain):
    """Blocks that wait for each other while another stream's kernels come and go."""
    inputs, other = problem(plain), torch.cuda.Stream()
    expected = call(inputs)
    a = torch.randn(2048, 2048, device="cuda")
    for _ in range(50):
        with torch.cuda.stream(other):
            a = torch.tanh(a @ a)
        assert same(call(inputs), expected)


@pytest.mark.parametrize("plain", CELLS)
def test_another_stream(plain):
    inputs, stream = problem(plain), torch.cuda.Stream()
    expected = call(inputs)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Long enough for a launch on the wrong stream to come too early.
        torch.cuda._sleep(10_000_000)
        x = inputs.x.detach().clone().requires_grad_()
        found = call(inputs._replace(x=x))
    torch.cuda.current_stream().wait_stream(stream)
    assert same(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device():
    torch.manual_seed(0)
    expected = call(problem("lstm"))
    torch.manual_seed(0)
    inputs = problem("lstm")
    moved = {k: v.to("cuda:1") for k, v in inputs._asdict().items() if isinstance(v, torch.Tensor)}
    moved = {k: v.detach().requires_grad_() for k, v in moved.items()}
    found = call(inputs._replace(**moved))
    assert all(torch.equal(found[name].cpu(), v.cpu()) for name, v in expected.items())


def test_pinned_resets_may_change_after_the_call():
    """Their copy waits for the device."""
    layer, x = rnnkit.GRU(4, 8).cuda(), torch.randn(6, 3, 4, device="cuda")
    resets = torch.zeros(6, 3, dtype=torch.bool).pin_memory()
    expected, _ = layer(x, resets=resets)
    torch.cuda._sleep(100_000_000)
    found, _ = layer(x, resets=resets)
    resets.fill_(True)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("plain", [*CELLS, "gru_before", "lstm_norm"])
def test_a_captured_graph(form, plain):
    """Forward and backward in a CUDA graph, replayed on other data."""
    inputs = problem(plain)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call(inputs)
    with torch.no_grad():
        inputs.x.copy_(torch.randn_like(inputs.x))
    graph.replay()
    torch.cuda.synchronize()
    assert same(found, call(inputs))


@pytest.mark.parametrize("plain", ["lstm", "gru_before_norm"])
def test_no_host_synchronisation(form, plain):
    inputs = problem(plain, lengths=tuple(range(1, 21)) * 2)
    call(inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_offsets_beyond_32_bits():
    """A sequence of more than 2^31 gates equals its two halves, the second begun where the first
    ended.
    """
    T, B, H = 2200, 256, 1024
    assert T * B * 4 * H > 2**31
    kind = Kind(bias=False, start=False, sizes={"T": 2, "B": B, "H": H})
    inputs = sample("lstm", kind, torch.bfloat16, "cuda", grad=False)
    torch.cuda.empty_cache()
    x = torch.randn(T, B, 1, 4, H, dtype=torch.bfloat16, device="cuda")
    with rnnkit.backend("cuda"):
        whole = scan(*inputs._replace(x=x))
        first = scan(*inputs._replace(x=x[: T // 2]))
        second = scan(*inputs._replace(x=x[T // 2 :], s0=first[2]))
    # What is carried on is rounded between the halves.
    torch.testing.assert_close(second[0][:3], whole[0][T // 2 : T // 2 + 3], rtol=0.05, atol=0.02)
    torch.testing.assert_close(first[0], whole[0][: T // 2])
    torch.testing.assert_close(second[2], whole[2], rtol=0.05, atol=0.05)


SANITIZED = """
import sys
sys.path[:0] = {path!r}
import torch
from test_cuda_gpu import call
from problems import Kind, sample
for cell in ("gru", "lstm_peephole"):
    for dtype, H in ((torch.bfloat16, 100), (torch.float32, 40), (torch.float32, 100),
                     (torch.float32, 150)):
        sizes = dict(T=3, B=20, H=H)
        call(sample(cell, Kind((False, True), 1, (3, 0) * 10, True, True, True, sizes=sizes), dtype,
                    "cuda"))
torch.cuda.synchronize()
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("compute-sanitizer"), reason="there is no compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_kernels_are_clean(tool):
    script = SANITIZED.format(path=sys.path)
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c"]
    done = subprocess.run([*command, script], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.parametrize("plain", CELLS)
@pytest.mark.parametrize("H", [20, 64, 128, 160, 512, 1024])
def test_sizes_that_users_have(plain, H):
    kind = Kind(sizes={"T": 5, "B": 64, "H": H})
    inputs = sample(plain, kind, torch.float32, "cuda")
    assert_same(call(inputs), call(inputs, "reference"), 1e-5)
