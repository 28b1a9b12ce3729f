"""The CUDA kernels' library is built for the GPUs that are here, or the reason is known why not."""

import re
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from cuda_harness import CSRC, compiles_for_gpus, nvcc
from test_native_build import copy_of_checkout, wheel
from tiny_library import compiles, write_cuda_sources, write_nvcc, write_sources

from rnnkit.cuda import library
from rnnkit.cuda.arguments import Block, Form
from rnnkit.native import arguments, cache, load
from rnnkit.native.recipes import Compiler, Cuda, NoLibrary, cuda
from rnnkit.native.recipes.cuda import KINDS, Architecture, listed

GPU = torch.device("cuda", 0)
NEW = Compiler(("nvcc",), "release 13.0")
OLD = Compiler(("nvcc",), "release 12.4")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """A machine without nvcc, and a cache without a library."""
    for name in ("RNNKIT_BUILD", "RNNKIT_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cuda, "USUAL_COMPILERS", ["no-nvcc"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def csrc(tmp_path):
    """Sources of a tiny library."""
    write_cuda_sources(tmp_path / "csrc")
    return tmp_path / "csrc"


@pytest.fixture
def package(tmp_path, csrc, monkeypatch):
    """A package without a library, in a process that has not asked for one, beside one H100."""
    (tmp_path / "rnnkit" / "native").mkdir(parents=True)
    monkeypatch.setattr(load, "PACKAGE", tmp_path / "rnnkit")
    monkeypatch.setattr(load, "SOURCES", (csrc,))
    monkeypatch.setattr(library, "Library", Path)
    have_gpus(monkeypatch, (9, 0))
    return tmp_path / "rnnkit"


@pytest.fixture
def log(tmp_path, monkeypatch):
    """What nvcc was asked to do, without what it was asked of itself."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    calls = write_nvcc(tmp_path / "cuda")
    return lambda: [line for line in calls() if not line.startswith("--")]


def have_gpus(monkeypatch, *cards):
    """What the next process would have."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_capability",
        lambda device: cards[getattr(device, "index", device)],
    )
    monkeypatch.setattr(load, "_found", {})
    library.for_gpu.cache_clear()


def recipe(card=None, compiler=NEW, known=((8, 0), (8, 6), (9, 0), (10, 0))):
    found = Cuda(card)
    found.compiler = compiler
    found.known = lambda: known
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("9.0", ["9.0"]),
        ("8.0;9.0+PTX", ["8.0", "9.0+PTX"]),
        ("7.0 7.5 8.6  12.0+PTX", ["8.6", "12.0+PTX"]),
        ("9.0a;10.0f; 8.0", ["8.0", "9.0", "10.0"]),
        ("10.0;9.0;10.0", ["9.0", "10.0"]),
        ("Hopper", "TORCH_CUDA_ARCH_LIST has 'Hopper': expected numbers such as"),
        ("8.0,9.0", "has '8.0,9.0'"),
        ("90", "has '90'"),
        ("6.1 7.5+PTX", r"TORCH_CUDA_ARCH_LIST=6.1 7.5\+PTX has none from 8.0 on"),
    ],
)
def test_a_list_of_architectures(text, expected):
    if isinstance(expected, list):
        assert [str(each) for each in listed(text)] == expected
    else:
        with pytest.raises(NoLibrary, match=expected):
            listed(text)


@pytest.mark.parametrize(
    ("architecture", "runs", "not_on"),
    [
        (Architecture(8, 0), [(8, 0), (8, 9)], [(7, 5), (9, 0)]),
        (Architecture(8, 6), [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        (Architecture(9, 0, ptx=True), [(9, 0), (10, 0), (12, 1)], [(8, 9)]),
    ],
)
def test_where_code_runs(architecture, runs, not_on):
    assert all(map(architecture.runs_on, runs)) and not any(map(architecture.runs_on, not_on))


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ((9, 0), ["9.0"]),
        ((8, 9), ["8.6+PTX"]),  # this compiler is older than the GPU
        ((12, 0), ["10.0+PTX"]),
        (None, ["8.0", "9.0", "10.0+PTX"]),
    ],
)
def test_architectures_suit_the_gpu_and_the_compiler(card, expected):
    assert list(recipe(card).processors) == expected
    assert recipe(card).why_not(expected) is None


def test_the_usual_architectures_that_the_compiler_knows():
    assert recipe(known=((8, 0), (9, 0))).processors == ("8.0", "9.0+PTX")


@pytest.mark.parametrize(
    ("card", "expected"),
    [((9, 0), "9.0"), ((8, 9), "8.6"), ((10, 3), "10.0+PTX"), ((12, 0), "10.0+PTX")],
)
def test_of_a_list_a_gpu_takes_what_suits_it_best(card, expected, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 8.0 8.6 9.0 10.0+PTX 12.1")
    assert recipe(card).processors == (expected,)


def test_the_list_comes_before_the_gpu(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
    assert recipe().processors == ("8.0", "9.0")  # a wheel's
    with pytest.raises(NoLibrary, match=r"8.0;9.0: it is for 8.0, 9.0, not for 12.0"):
        recipe((12, 0)).processors  # noqa: B018


def test_commands(tmp_path):
    compiles, link = recipe(known=((8, 0), (10, 0))).commands(CSRC, tmp_path)
    codes = [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]
    made_of = f"{Cuda.source_hash(CSRC)} 8.0 10.0+PTX"
    for command in compiles:
        assert [word for word in command if word.startswith("-gencode")] == codes
        assert f'-DRNNKIT_SOURCE="{made_of}"' in command and f"-I{CSRC}" in command
        assert "-use_fast_math" not in command
    assert all(command[-1] in link for command in compiles) and link[0] == "nvcc"
    assert "-cudart=static" in link  # torch has another
    kinds = [word for command in compiles for word in command if "RNNKIT_KIND" in word]
    assert kinds == [f"-DRNNKIT_KIND={kind}" for kind in reversed(KINDS)]


def test_every_source_is_compiled():
    units = {unit for unit, _ in recipe().units()}
    assert units == {path.stem for path in (CSRC / "cuda").glob("*.cu")}


def test_the_cache_has_a_place_for_each_machine_and_source():
    recipes = [recipe((9, 0)), recipe((8, 0)), recipe(), recipe((9, 0), compiler=OLD)]
    places = [cache.place(each, source) for each in recipes for source in ("a", "b")]
    assert len(set(places)) == len(places)
    assert cache.place(recipe((9, 0)), "a") == places[0]


@compiles
def test_it_is_built_once_and_found_again(package, log, monkeypatch, recwarn, capfd):
    path, reason = library.find(GPU)
    assert reason is None and path.is_file() and len(log()) == len(recipe().units()) + 1
    assert re.fullmatch(
        r"rnnkit: compiling its CUDA kernels, once \(up to 5 minutes\) ...\n"
        r"rnnkit: compiled in \d+ s\n",
        capfd.readouterr().err,
    )
    for allowed in ("1", "0"):
        have_gpus(monkeypatch, (9, 0))
        monkeypatch.setenv("RNNKIT_BUILD", allowed)
        assert library.find(GPU) == (path, None)
    assert len(log()) == len(recipe().units()) + 1
    assert not recwarn and not capfd.readouterr().err


@compiles
def test_each_kind_of_gpu_has_its_own_library_whatever_others_are_visible(
    package, log, monkeypatch
):
    first, _ = library.find(GPU)
    have_gpus(monkeypatch, (7, 5), (8, 0), (9, 0), (9, 0))
    _, second, third, fourth = (library.find(torch.device("cuda", index))[0] for index in range(4))
    assert first == third == fourth != second and second.is_file()
    assert len(log()) == 2 * (len(recipe().units()) + 1)
    assert not any("compute_75" in line for line in log())
    assert library.find(GPU) == (
        None,
        "its kernels need compute capability 8.0, and cuda:0 has 7.5",
    )


@compiles
def test_whom_the_list_leaves_out_costs_the_others_nothing(package, log, monkeypatch):
    have_gpus(monkeypatch, (8, 6), (9, 0))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0 12.0+PTX")
    assert (
        "TORCH_CUDA_ARCH_LIST=9.0 12.0+PTX: it is for 9.0, 12.0+PTX, not for 8.6" in library.look()
    )
    have_gpus(monkeypatch, (8, 6), (9, 0))
    assert library.find(torch.device("cuda", 1))[1] is None
    assert library.find(GPU)[0] is None and not any("compute_120" in line for line in log())


@compiles
@pytest.mark.parametrize("how", ["another", "none", "forbidden", "none and forbidden"])
def test_what_one_compiler_built_needs_it_no_more(
    how, package, log, tmp_path, monkeypatch, recwarn
):
    found = library.find(GPU)
    assert found[1] is None
    tried = len(log())
    if how == "another":
        write_nvcc(tmp_path / "cuda", "a newer nvcc")
    if how.startswith("none"):
        monkeypatch.delenv("CUDA_HOME")
    if how.endswith("forbidden"):
        monkeypatch.setenv("RNNKIT_BUILD", "0")
    have_gpus(monkeypatch, (9, 0))
    assert library.find(GPU) == found and len(log()) == tried and not recwarn


@compiles
def test_where_none_can_be_compiled_any_that_serves_is_used(package, csrc, log, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0+PTX")
    old, _ = library.find(GPU)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setenv("RNNKIT_BUILD", "0")
    have_gpus(monkeypatch, (9, 0))
    assert library.find(GPU) == (old, None)
    monkeypatch.delenv("RNNKIT_BUILD")
    have_gpus(monkeypatch, (9, 0))  # a new one suits it better
    new, _ = library.find(GPU)
    assert new == cache.place(Cuda((9, 0)), Cuda.source_hash(csrc)) != old
    monkeypatch.delenv("CUDA_HOME")
    have_gpus(monkeypatch, (8, 0), (9, 0), (10, 0))  # of two for an H100, the newer
    devices = (torch.device("cuda", index) for index in range(3))
    assert [library.find(each)[0] for each in devices] == [old, new, old]


@compiles
def test_the_package_comes_first_if_it_is_for_these_gpus(package, csrc, log, monkeypatch, recwarn):
    path = package / "native" / Cuda.library
    Cuda((8, 0)).build(path, csrc)
    built = len(log())
    have_gpus(monkeypatch, (8, 6))
    monkeypatch.delenv("CUDA_HOME")
    assert library.find(GPU) == (path, None)
    have_gpus(monkeypatch, (9, 0))
    found, reason = library.find(GPU)
    assert found is None and f"{path} cannot be used: it is for 8.0, not for 9.0" in reason
    monkeypatch.setenv("CUDA_HOME", str(package.parent / "cuda"))
    have_gpus(monkeypatch, (9, 0))
    assert library.find(GPU)[0].is_relative_to(package.parent / "cache")
    assert len(log()) == 2 * built and not recwarn


@compiles
def test_a_broken_file_is_named_and_another_built(package, csrc, log, monkeypatch):
    path = cache.place(Cuda((9, 0)), Cuda.source_hash(csrc))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"noise " * 1000)
    monkeypatch.setenv("RNNKIT_BUILD", "0")
    have_gpus(monkeypatch, (9, 0))
    with pytest.warns(RuntimeWarning, match=f"rnnkit's CUDA kernels: {path} cannot be loaded"):
        found, reason = library.find(GPU)
    assert found is None and f"{path} cannot be loaded" in reason and "RNNKIT_BUILD=0" in reason
    monkeypatch.delenv("RNNKIT_BUILD")
    have_gpus(monkeypatch, (9, 0))
    with pytest.warns(RuntimeWarning):
        assert library.find(GPU) == (path, None)


@compiles
def test_what_the_compiler_refuses_is_remembered(package, csrc, log, monkeypatch, recwarn):
    (csrc / "cuda" / "kernels.cu").write_text("static int broken = no_such_name;")
    assert re.search(r"kernels.cu:1:.*no_such_name", library.find(GPU)[1])
    (warned,) = (str(warning.message) for warning in recwarn.list)
    assert warned.startswith("rnnkit's CUDA kernels: ") and "no_such_name" in warned
    tried = len(log())
    have_gpus(monkeypatch, (9, 0))
    with pytest.warns(RuntimeWarning, match="no_such_name"):
        reason = library.find(GPU)[1]
    assert "no_such_name" in reason and "failure.txt" in reason
    have_gpus(monkeypatch, (9, 0))
    with pytest.warns(RuntimeWarning, match="no_such_name"):
        assert library.look() == reason
    assert len(log()) == tried


@compiles
def test_a_driver_that_runs_nothing(package, csrc, log, monkeypatch):
    """Its machine neither compiles again nor takes the library from those that share its cache."""
    path, here = csrc / "cuda" / "library.cu", package / "older"
    driver = f'return std::system("test ! -e {here}") ? 35 : 0;'
    path.write_text("#include <cstdlib>\n" + path.read_text().replace("return 0;", driver))
    found = library.find(GPU)
    assert found[1] is None
    tried = len(log())
    here.touch()
    for _ in range(2):
        have_gpus(monkeypatch, (9, 0))
        with pytest.warns(RuntimeWarning, match="the driver is too old") as warned:
            assert "the driver is too old" in library.find(GPU)[1]
        assert len(warned) == 1
    here.unlink()
    have_gpus(monkeypatch, (9, 0))
    assert library.find(GPU) == found and len(log()) == tried


@compiles
@pytest.mark.parametrize(("known", "built"), [(11, False), (12, True), (13, True), (None, True)])
def test_nothing_is_compiled_that_the_driver_could_not_run(
    known, built, package, log, tmp_path, monkeypatch, recwarn
):
    write_nvcc(tmp_path / "cuda", "Cuda compilation tools, release 12.4, V12.4.131")
    monkeypatch.setattr(library, "driver", lambda: known)
    reason = library.find(GPU)[1]
    assert (reason is None, bool(log())) == (built, built)
    expected = "nvcc is of CUDA 12, the driver runs libraries up to 11"
    assert built or (expected in reason and expected in str(recwarn.pop().message))


def test_reasons(package, monkeypatch, recwarn):
    monkeypatch.setenv("CUDA_PATH", "/no/such/folder")
    reason = library.find(GPU)[1]
    assert reason.count("no working CUDA compiler (tried: /no/such/folder/bin/nvcc, no-nvcc)") == 1
    monkeypatch.setenv("RNNKIT_BUILD", "0")
    have_gpus(monkeypatch, (9, 0))
    assert "RNNKIT_BUILD=0 forbids compiling" in library.find(GPU)[1]
    have_gpus(monkeypatch, (9, 0))
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert library.find(GPU)[1] == "its kernels are in CUDA C++, and this torch is for ROCm"
    assert not recwarn


def test_a_cpu_tensor_looks_for_nothing(monkeypatch):
    monkeypatch.setattr(load, "once", None)
    assert library.find(torch.device("cpu")) == (None, "its kernels run on a GPU")


@compiles
def test_to_look_builds_nothing(package, log):
    promise = "its library is not there: it is compiled when it is first used (up to 5 minutes)"
    assert library.look() == promise
    assert library.find(GPU) == (None, promise) and not log()


@compiles
def test_a_wheel_has_it_if_asked(tmp_path, csrc, log, monkeypatch):
    pytest.importorskip("setuptools", "77")
    write_sources(csrc)
    copy_of_checkout(tmp_path / "checkout", csrc)
    monkeypatch.setenv("RNNKIT_CUDA", "1")
    built = wheel(tmp_path / "checkout", tmp_path / "first")
    assert not built.name.endswith("-any.whl")
    names = zipfile.ZipFile(built).namelist()
    assert f"rnnkit/native/{Cuda.library}" in names and "rnnkit/csrc/cuda/library.cu" in names
    assert "-gencode=arch=compute_100,code=compute_100" in log()[0]
    # Who asks for it gets it or an error, who does not, neither.
    monkeypatch.setenv("RNNKIT_BUILD", "0")
    with pytest.raises(subprocess.CalledProcessError):
        wheel(tmp_path / "checkout", tmp_path / "second")
    monkeypatch.setenv("RNNKIT_CUDA", "0")
    built = wheel(tmp_path / "checkout", tmp_path / "third")
    assert built.name.endswith("-any.whl")
    assert not any(Cuda.library in name for name in zipfile.ZipFile(built).namelist())


@pytest.mark.slow
@compiles_for_gpus
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_real_one_loads_and_says_that_there_is_no_gpu(tmp_path):
    real = recipe((9, 0), compiler=Compiler((nvcc(),), ""))
    real.build(tmp_path / real.library, CSRC)
    found = library.Library(str(tmp_path / real.library))
    kernels = [found.persistent("lstm", kind, 1, False, "L2") for kind in KINDS]
    assert len({kernel.value for kernel in kernels}) == len(KINDS)
    form = Form(**dict.fromkeys(Form._fields, 0) | {"blocks": 1, "slices": 1, "chunks": 1})
    problem = arguments.Arguments(T=1, B=1, N=1, H=16)
    for kernel in kernels:
        with pytest.raises(RuntimeError, match=r"rnnkit's CUDA kernels: .*CUDA"):
            found.launch(kernel, arguments.Block(*problem), Block(*form))
