"""The sdist, the wheel made of it, and that wheel where there is no compiler, triton or GPU."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_native_build import wheel
from tiny_library import compiles

import rnnkit
from rnnkit.native.recipes import Cpu

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
pytest.importorskip("setuptools", "77")

# What only a checkout needs, and what only a package has.
CHECKOUT = {".ci/run", ".gitignore"}
PACKAGED = {"PKG-INFO", "setup.cfg"}
# What a working tree may have beside its files.
LEFT = ("tests/__pycache__/left.pyc", f"rnnkit/native/{Cpu.library}", "benchmarks/left.pyc")


def checkout():
    """The files that are in git, or are to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    return {name for name in names if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in checkout():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for name in LEFT:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).touch()
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    subprocess.check_output([sys.executable, "-c", build], cwd=source)
    (built,) = out.iterdir()
    return built


@pytest.fixture(
    scope="module",
    params=["without kernels", pytest.param("with kernels", marks=[pytest.mark.slow, compiles])],
)
def built(request, sdist, tmp_path_factory):
    """The wheel, and whether the CPU kernels were compiled into it."""
    compiled = request.param == "with kernels"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RNNKIT_CUDA", "CUDA_HOME"):
            patch.delenv(name, raising=False)
        patch.setenv("RNNKIT_BUILD", str(int(compiled)))
        return wheel(sdist, tmp_path_factory.mktemp("wheel")), compiled


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A folder with nothing but the installed wheel."""
    target = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(target)]
    subprocess.check_call([sys.executable, "-m", "pip", "install", *options, str(built[0])])
    return target


def test_the_sdist_is_the_checkout(sdist):
    with tarfile.open(sdist) as file:
        names = [member.name.partition("/")[2] for member in file if member.isfile()]
    found = {name for name in names if not name.startswith("rnnkit.egg-info/")}
    assert found - PACKAGED == checkout() - CHECKOUT


def test_the_wheel_is_the_package(built):
    path, compiled = built
    names = {name for name in zipfile.ZipFile(path).namelist() if ".dist-info/" not in name}
    files = checkout()
    expected = {name for name in files if name.startswith("rnnkit/")}
    expected |= {f"rnnkit/{name}" for name in files if name.startswith("csrc/")}
    expected |= {f"rnnkit/native/{Cpu.library}"} if compiled else set()
    assert "rnnkit/py.typed" in names and names == expected
    assert path.name.endswith("-py3-none-any.whl") != compiled


CLEAN = """
import sys
sys.modules["triton"] = None
import runpy
from importlib import metadata
import torch, rnnkit

x, lengths = torch.randn(7, 3, 4), torch.tensor([7, 0, 3])
theirs, ours = torch.nn.LSTM(4, 6, 2), rnnkit.LSTM(4, 6, 2)
ours.load_state_dict(theirs.state_dict())
torch.testing.assert_close(ours(x), theirs(x))
for layer in (ours, rnnkit.GRU(4, 6, layer_norm=True)):
    output, _ = layer(x, lengths=lengths)
    output.sum().backward()
    assert not output[3:, 2].any() and layer.weight_hh_l0.grad.isfinite().all()
    rnnkit.explain(layer, x)
assert rnnkit.__version__ == metadata.version("rnnkit")
print(rnnkit.__file__)
runpy.run_module("rnnkit", run_name="__main__")
"""


def test_it_runs_without_compiler_triton_or_gpu(built, installed, tmp_path):
    environment = {"PATH": "", "PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", CLEAN]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines, compiled = done.stdout.splitlines(), built[1]
    ran = [line.rpartition(": ")[2] for line in lines if re.match(r"\w+ T=7 ", line)]
    assert ran == (["cpu"] * 3 if compiled else ["torch", "torch", "reference"])
    assert f"{installed}/rnnkit/__init__.py" in lines
    assert f"rnnkit {rnnkit.__version__}, Python" in done.stdout
    assert "triton not usable (" in done.stdout and "  reference: works" in lines
    missing = "  cpu: its library is not there: there is no working C++ compiler"
    assert "  cpu: works" in lines if compiled else missing in done.stdout


def test_metadata(installed):
    (package,) = metadata.distributions(path=[str(installed)])
    needs = [Requirement(line) for line in package.requires]
    assert [need.name for need in needs if need.marker is None] == ["torch"]
    extras = set(package.metadata.get_all("Provides-Extra"))
    assert {"examples", "test", "triton"} <= extras
    assert {extra for need in needs if need.name == "rnnkit" for extra in need.extras} <= extras
    assert package.version == rnnkit.__version__


def test_the_examples_extra_resolves(built):
    """By what is installed here."""
    for module in ("numpy", "matplotlib"):
        pytest.importorskip(module)
    wanted = f"rnnkit[examples] @ {built[0].as_uri()}"
    options = ["--quiet", "--dry-run", "--no-index", wanted]
    subprocess.check_call([sys.executable, "-m", "pip", "install", *options])


def test_the_version_stands_in_one_place():
    kinds = (".py", ".toml", ".md", ".yml")
    places = {name for name in checkout() if name.endswith(kinds) and has_version(ROOT / name)}
    assert places == {"rnnkit/version.py", "CHANGELOG.md"}
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == rnnkit.__version__


def has_version(path):
    return re.search(rf"(?<![\d.]){re.escape(rnnkit.__version__)}(?![\d.])", path.read_text())
