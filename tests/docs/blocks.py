"""Fenced blocks of README, CONTRIBUTING and docs/, with what the documents say about running them.

A block of `sh` or `python` is run. One that cannot be run here has a comment above it that says why::

    <!-- not run: needs SDXL's weights -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIRST = ("README.md", "docs/index.md", "docs/guides/sdxl.md")
"""What a reader does first, and makes for later pages."""
REST = ("CONTRIBUTING.md", "SECURITY.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md"))))
DOCUMENTS = [ROOT / name for name in dict.fromkeys((*FIRST, *REST))]
FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
REASON = re.compile(r"<!-- not run: (.+?) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """``language`` and ``text`` of a fenced block; ``reason`` is why it is not run, or empty."""

    path: Path
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def prose(path: Path) -> str:
    """A document without its blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def blocks_of(path: Path) -> Iterator[Block]:
    """The blocks of a document, in its order. Documents of results list commands that took hours: those are not run."""
    text = path.read_text(encoding="utf-8")
    recorded = "a result that is kept" if path.parent.name == "results" else ""
    for found in FENCE.finditer(text):
        reason = REASON.search(text[: found.start()])
        line = text.count("\n", 0, found.start()) + 1
        yield Block(path, line, found[2], found[3], reason[1] if reason else recorded)


BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]
