"""Quotes README.md and CONTRIBUTING.md on pages of the site, so that each fact stands in one place.

A line `{{ README.md#Use }}` is what stands there under `## Use`; `{{ README.md# }}`, what stands
before the first such heading. A link to a file that the site does not have is its text alone.
"""

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
QUOTE = re.compile(r"^\{\{ (\S+)#(.*) \}\}$", re.MULTILINE)
HEADING = re.compile(r"^## (.+)\n", re.MULTILINE)
LINK = re.compile(r"\]\(([\w./-]+)")
LINK_OUT = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls it for every page."""
    return LINK_OUT.sub(r"\1", QUOTE.sub(lambda found: section(found[1], found[2]), markdown))


def section(file: str, title: str) -> str:
    """What stands under a heading of a file in ROOT, with the links that a page of docs/ has."""
    before, *rest = HEADING.split((ROOT / file).read_text())
    found = dict(zip(["", *rest[::2]], [before, *rest[1::2]], strict=True))
    return LINK.sub(moved, found[title])


def moved(link: re.Match[str]) -> str:
    """A link to a file, from ROOT to docs/; what only looks like one, as code may, stays."""
    path = ROOT / link[1]
    return f"]({os.path.relpath(path, ROOT / 'docs')}" if path.exists() else link[0]
