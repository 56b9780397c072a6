"""The documentation site builds without a warning, and has what its pages promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import vqcompress
from tests.docs.blocks import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; warnings are errors."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class _Page(HTMLParser):
    """Addresses that a page asks for, and its identifiers."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.asks: list[tuple[str, str]] = []
        self.identifiers: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.identifiers.add(str(values["id"]))
        for key in ("href", "src"):
            if values.get(key):
                self.asks.append((tag, str(values[key])))


@pytest.mark.slow
def test_links_lead_somewhere(site: Path) -> None:
    pages = {path: _Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 30
    for path, page in pages.items():
        for _, address in page.asks:
            parts = urlsplit(address)
            if parts.scheme or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(site)} links to {address}"
            if parts.fragment and target in pages:
                known = pages[target].identifiers
                assert unquote(parts.fragment) in known, f"{path.relative_to(site)} links to {address}"


@pytest.mark.slow
def test_pages_ask_no_other_host(site: Path) -> None:
    """Readers' browsers load scripts, styles and pictures from the site alone."""
    for path in site.rglob("*.html"):
        loads = [(tag, address) for tag, address in _Page(path).asks if tag in ("script", "img", "link")]
        foreign = [each for each in loads if urlsplit(each[1]).scheme in ("http", "https")]
        assert not foreign, f"{path.relative_to(site)}: {foreign}"


@pytest.mark.slow
def test_every_public_name_is_documented_with_its_docstring(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in vqcompress.__all__:
        assert re.search(rf'id="vqcompress\.(?:\w+\.)*{name}"', page), f"docs/api.md lacks {name}"
    assert "Compress <code>model</code>" in page  # a docstring, and not a signature alone


@pytest.mark.slow
def test_mathematics_is_drawn_by_the_browser_itself(site: Path) -> None:
    page = (site / "how-it-works.html").read_text(encoding="utf-8")
    assert page.count("<math") > 20
    assert "$`" not in page
    assert "```math" not in page
