"""torch.export of whole layers: one program for every T and B, in inference and in training; and
what becomes of it in a process that knows nothing of the model, or nothing of rnnkit.
"""

import subprocess
import sys

import pytest
import torch
from layer_variants import VARIANTS, assert_same, joined, main_variant, randn, run, states
from torch.export import Dim, export

import rnnkit

B, I, H = 3, 2, 4  # noqa: E741


class Wrapped(torch.nn.Module):
    """A layer whose every argument is positional, as a program's inputs are."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, lengths, resets, *hx):
        state = hx if len(hx) > 1 else hx[0]
        return self.layer(x, state, lengths=lengths, resets=resets)


def arguments(variant, steps, rows):
    lengths = torch.arange(rows) % (steps + 1)
    hx = states(variant, 4, rows, hidden=H).values()
    return randn(steps, rows, I), lengths, randn(steps, rows, seed=7) > 1, *hx


def shapes(variant):
    T, N = Dim("T", min=2, max=512), Dim("B", min=2, max=512)
    states = tuple({1: N} for _ in variant.sizes(H))
    return ({0: T, 1: N}, {0: N}, {0: T, 1: N}, states)


@main_variant
def test_one_program_for_all_sizes(variant):
    """Each layer is one rnnkit::scan in it: no loop over time is unrolled."""
    module = Wrapped(variant.layer(I, H, 2, bidirectional=True, zoneout=0.2)).eval()
    exported = export(module, arguments(variant, 5, B), dynamic_shapes=shapes(variant))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert targets.count("rnnkit.scan.default") == 2
    for steps, rows in ((5, 3), (9, 2), (2, 6)):
        given = arguments(variant, steps, rows)
        assert_same((flat(exported.module()(*given)), {}), (flat(module(*given)), {}), 1e-12)


def test_gradients_of_a_program():
    """An exported program trains: its gradients are the module's."""
    variant = VARIANTS[1]
    module = variant.layer(I, H)
    dims = ({0: Dim("T", min=2, max=512), 1: Dim("B", min=2, max=512)},)
    exported = export(module, (randn(5, B, I),), dynamic_shapes=dims).module()

    def call(module, x, **given):
        return module(x, joined(given)) if given else module(x)

    tensors = {"x": randn(9, 2, I)}
    assert_same(run(exported, call, tensors), run(module, call, tensors))


def flat(results):
    output, state = results
    return [output, *(state if isinstance(state, tuple) else (state,))]


# What a process runs that has programs, but not the code of the models; rnnkit comes by its name.
ELSEWHERE = """
import sys
import torch
for path in sys.argv[1:]:
    if path == "rnnkit":
        assert "rnnkit" not in sys.modules
        import rnnkit
        continue
    packaged = path.endswith("packaged.pt2")
    run = torch._inductor.aoti_load_package(path) if packaged else torch.export.load(path).module()
    for args, expected in torch.load(path + ".calls"):
        for ours, theirs in zip(run(*args), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
assert ("rnnkit" in sys.modules) == ("rnnkit" in sys.argv)
assert not {"onnx", "onnxscript"} & sys.modules.keys()
"""


class Model(torch.nn.Module):
    """A model of the user's own, with all of rnnkit's operators."""

    def __init__(self):
        super().__init__()
        self.conv = rnnkit.CausalConv1d(I, 4, 2, activation="gated")
        self.block = rnnkit.WaveNetBlock(4, 2)
        self.gru = rnnkit.GRU(4, H, layer_norm=True, zoneout=0.1)
        self.norm = rnnkit.LayerNorm(H, activation="silu")

    def forward(self, x, lengths):
        """x: (B, I, T)."""
        x, _ = self.block(self.conv(x))
        output, h = self.gru(x.permute(2, 0, 1), lengths=lengths)
        return self.norm(output), h


class Tagger(torch.nn.Module):
    """A smaller one."""

    def __init__(self):
        super().__init__()
        self.gru, self.out = rnnkit.GRU(I, H), torch.nn.Linear(H, 2)

    def forward(self, x, lengths):
        output, h = self.gru(x.permute(2, 0, 1), lengths=lengths)
        return self.out(output), h


def trained(model):
    sum(v.square().mean() for v in model(*model_arguments(4, 6))).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return model.eval()


def model_arguments(rows, steps):
    lengths = (torch.arange(rows) * 2) % (steps + 1)
    return randn(rows, I, steps, dtype=torch.float32), lengths


def program_of(model):
    """The model's program. Made where every operator is rnnkit's own, and none torch's."""
    rows, steps = Dim("B", min=1, max=512), Dim("T", min=1, max=512)
    shapes = ({0: rows, 2: steps}, {0: rows})
    with rnnkit.backend("reference"):
        return export(model, model_arguments(3, 5), dynamic_shapes=shapes)


def operators(program):
    """rnnkit's operators in a program."""
    targets = {str(node.target) for node in program.graph.nodes}
    return {target for target in targets if target.startswith("rnnkit")}


def write(path, model, program, **options):
    """Writes a program, with options as a package made by them, and calls of the model."""
    if options:
        torch._dynamo.reset()
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=options
        )
    else:
        torch.export.save(program, path)
    calls = [model_arguments(*sizes) for sizes in ((3, 5), (2, 9), (1, 1))]
    with torch.no_grad():
        torch.save([(args, model(*args)) for args in calls], f"{path}.calls")
    return str(path)


def run_elsewhere(*paths):
    """Runs programs in another process, where they must give what the models gave."""
    subprocess.run([sys.executable, "-c", ELSEWHERE, *paths], check=True)


# The wrapper's time is nothing to a test, its compiler's is.
QUICK = {"aot_inductor.compile_wrapper_opt_level": "O0"}


def test_without_the_code_of_the_model(tmp_path):
    """A saved program and an AOTInductor package run where there is rnnkit; without rnnkit's
    operators, where there is torch.
    """
    model, small = trained(Model()), trained(Tagger())
    program = program_of(model)
    plain = program.run_decompositions(rnnkit.export.decompositions())
    assert len(operators(program)) == 4
    assert not operators(plain)
    saved = write(tmp_path / "saved.pt2", model, program)
    anywhere = write(tmp_path / "plain.pt2", model, plain)
    package = write(tmp_path / "packaged.pt2", small, program_of(small), **QUICK)
    run_elsewhere(anywhere, "rnnkit", saved, package)


@pytest.mark.slow
@pytest.mark.parametrize("imported", [["rnnkit"], []])
def test_whole_packages(imported, tmp_path):
    """An AOTInductor package of all operators runs where the program does."""
    model = trained(Model())
    program = program_of(model)
    if not imported:
        program = program.run_decompositions(rnnkit.export.decompositions())
    run_elsewhere(*imported, write(tmp_path / "packaged.pt2", model, program, **QUICK))
