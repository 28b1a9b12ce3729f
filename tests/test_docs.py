"""The documentation's code does what its pages say, and the reference leaves out no public name."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pages
import pytest
import torch

import rnnkit
from rnnkit.cpu.library import why_no_kernels

ROOT = Path(__file__).resolve().parents[1]
EVERY = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in EVERY if pages.code(page)]
# What a page's code needs beside torch.
NEEDS = {"keras.md": ["keras"], "onnx.md": ["onnx", "onnxruntime", "onnxscript"]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs(page, tmp_path, monkeypatch):
    for module in NEEDS.get(page.name, []):
        pytest.importorskip(module)
    if page.name == "backends.md" and (reason := why_no_kernels("lstm", torch.float32)):
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    pages.run(page)


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text()
    shown = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    public = {"rnnkit.init.keras_"}
    for module in (rnnkit, rnnkit.functional):
        public |= {f"{module.__name__}.{name}" for name in module.__all__ if is_code(module, name)}
    assert not public - shown


def is_code(module, name):
    return not isinstance(getattr(module, name), ModuleType | str)


@pytest.mark.slow  # `make check` builds it, too
def test_the_site_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    subprocess.check_call([*command, "--site-dir", str(tmp_path)], cwd=ROOT)
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*src=\S+|<link[^>]*>", page.read_text())
        assert loaded and not [tag for tag in loaded if "//" in tag], page.name
