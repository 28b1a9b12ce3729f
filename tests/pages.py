"""Runs the code on a page of the documentation.

Blocks of `python` run in order, in one namespace; those of `pycon` are doctests in it. A block
with a title does not run: the title says of which file it is, or why not. A comment that begins
with a shape is a claim about the first name of its line: `y = conv(x)  # (8, 32, 1000)`.
"""

import doctest
import re
from textwrap import dedent

FENCE = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
CLAIM = re.compile(r"^( *(\w+)\b.* = .*?)  # (\([\d, ]+\)).*$", re.MULTILINE)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def code(page):
    """The blocks that run: language, code, and how many lines stand before it."""
    text, found = page.read_text(), []
    for fence in FENCE.finditer(text):
        _, language, info, body = fence.groups()
        if not language.startswith("py") or info.startswith(" title="):
            continue
        before = text.count("\n", 0, fence.start(4))
        assert language in ("python", "pycon") and not info, f"{page.name}:{before}: {fence[0]}"
        found.append((language, dedent(body), before))
    return found


def run(page):
    """Runs a page's code; returns the namespace that it leaves."""
    names = {"__name__": "__main__"}
    for language, body, before in code(page):
        if language == "python":
            checked = CLAIM.sub(r"\1; assert \2.shape == \3, \2.shape", body)
            exec(compile("\n" * before + checked, page, "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(body, names, page.name, str(page), before)
            said = []
            runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
            runner.run(test, out=said.append, clear_globs=False)
            assert not runner.failures, "".join(said)
            names |= test.globs
    return names
