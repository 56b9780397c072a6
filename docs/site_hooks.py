"""What MkDocs does not do by itself, for `mkdocs.yml`: pages from outside `docs/`, notebooks as pages, mathematics.

- `CONTRIBUTING.md`, `SECURITY.md` and `CHANGELOG.md` stay at the top, where GitHub looks for them.
- Links to other files of the repository, such as `../recipes`, stay links on GitHub and become text here.
- Notebooks are stored without outputs. A page shows their cells.
- Mathematics is written as GitHub reads it, ```` ```math ```` and ``$`x`$``, and becomes MathML, which browsers draw by
  themselves.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
BLOCK = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"\$`([^`]+)`\$")
UPWARD = re.compile(r"\[([^\]]+)\]\((\.\./[^)]+)\)")
PLACE = re.compile(r"formula(\d+)formula")
_FORMULAS: dict[str, list[str]] = {}
"""Page -> its formulas in MathML, by the numbers in their places."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside and the notebooks' pages."""
    for name in OUTSIDE:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        page = f"notebooks/{path.stem}.md"
        files.append(
            File.generated(config, page, content=_notebook_page(json.loads(path.read_text("utf-8")), path.name))
        )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to pages from outside become links to siblings; mathematics is kept from Markdown."""
    depth = page.file.src_uri.count("/")
    for name in OUTSIDE:
        markdown = markdown.replace("](" + "../" * (depth + 1) + name, "](" + "../" * depth + name)
    markdown = UPWARD.sub(lambda found: _in_the_site(found, Path(page.file.src_uri).parent), markdown)
    formulas = _FORMULAS[page.file.src_uri] = []
    markdown = BLOCK.sub(lambda found: f"\n{_kept(formulas, found[1].strip(), 'block')}\n", markdown)
    return INLINE.sub(lambda found: _kept(formulas, found[1], "inline"), markdown)


def _in_the_site(link: re.Match[str], folder: Path) -> str:
    """A link, or its text alone where it leads to a file of the repository that the site lacks."""
    target = os.path.normpath(Path("docs") / folder / link[2].partition("#")[0])
    outside = not target.startswith("docs" + os.sep) and (ROOT / target).exists()
    return link[1] if outside else link[0]


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the formulas back, as MathML. Markdown would take one at the start of a line for a block of HTML."""
    formulas = _FORMULAS[page.file.src_uri]
    return PLACE.sub(lambda found: formulas[int(found[1])], html)


def _kept(formulas: list[str], latex: str, display: str) -> str:
    formulas.append(convert(latex, display=display))
    return f"formula{len(formulas) - 1}formula"


def _notebook_page(notebook: dict[str, Any], name: str) -> str:
    cells = [("".join(cell["source"]), cell["cell_type"]) for cell in notebook["cells"]]
    shown = [text if kind == "markdown" else f"```python\n{text}\n```" for text, kind in cells]
    return "\n\n".join([*shown, f"[The notebook]({name}); a test runs it."])
