"""The README's example runs as it stands."""

import re
from pathlib import Path

import pytest


def blocks():
    text = (Path(__file__).parent.parent / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("block", blocks())
def test_example_runs(block, capsys):
    names = {}
    exec(block, names)
    assert names["output"].shape == (50, 32, 128)
    assert "reference" in capsys.readouterr().out
