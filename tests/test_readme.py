"""The README's example runs as it stands."""

import re
from pathlib import Path

import pytest

import rnnkit


def blocks():
    text = (Path(__file__).parent.parent / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("block", blocks())
def test_example_runs(block, capsys):
    names = {}
    with rnnkit.backend("reference"):  # the interpreter would take a minute
        exec(block, names)
    assert names["output"].shape in ((32, 64), (8, 1, 1000))
    assert "reference" in capsys.readouterr().out
