"""Write a report to disk: four files, each complete or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from vqcompress.folder_files import StrPath
from vqcompress.reports.comparison import Comparison
from vqcompress.reports.html import to_html
from vqcompress.reports.markdown import to_markdown
from vqcompress.reports.pictures import encode, image_grid


def _json(comparison: Comparison) -> str:
    return json.dumps(comparison.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


PAGES: Mapping[str, Callable[[Comparison], str]] = {
    "report.json": _json,
    "report.md": to_markdown,
    "report.html": to_html,
}


def write_report(
    comparison: Comparison, folder: StrPath, pages: Mapping[str, Callable[[Comparison], str]] = PAGES
) -> Path:
    """Write ``pages`` (file name -> text of a comparison) and ``grid.png`` into ``folder``, made if need be.

    Everything is rendered before the first file is touched, and each file replaces its older version in one step.
    Returns the path of ``report.html``.
    """
    files = {name: page(comparison).encode() for name, page in pages.items()}
    if comparison.pictures:
        files["grid.png"] = encode(image_grid(comparison.pictures, comparison.shown_prompts))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _replace(folder / name, content)
    return folder / "report.html"


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
