"""Files and Python names that the documents mention exist."""

from __future__ import annotations

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT, prose

SPAN = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?:[\w-]+/)*[\w-]+\.(?:py|cu|md|json|txt|html|svg)")
DOTTED = re.compile(r"vqcompress(?:\.\w+)+")
PLACES = (".", "vqcompress", "docs", "vqcompress/kernels", "tests")
WRITTEN = re.compile(r"report\.|vqcompress_|model_index|config\.json|grid|prompts\.txt|README\.md|utils\.py")
"""Files that a run writes or that must not exist."""


def spans(path: Path) -> list[str]:
    """What stands in backticks outside of fenced blocks."""
    return SPAN.findall(prose(path))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_exist(path: Path) -> None:
    named = {span for span in spans(path) if FILE.fullmatch(span) and not WRITTEN.search(span)}
    missing = [name for name in sorted(named) if not any((ROOT / place / name).is_file() for place in PLACES)]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_names_exist(path: Path) -> None:
    for name in {found for span in spans(path) for found in DOTTED.findall(span)}:
        resolve_name(name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_numbered_lists_are_not_interrupted(path: Path) -> None:
    """The site's Markdown counts anew after a block that is not indented, whatever number is written."""
    last = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        if item := re.match(r"(\d+)\. ", line):
            assert int(item[1]) in (1, last + 1), f"{line!r} would begin a list at 1"
            last = int(item[1])
        elif line and not line.startswith(" "):
            last = 0
