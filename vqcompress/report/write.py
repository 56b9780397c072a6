"""Put a report on disk: four files, each complete or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vqcompress.report.comparison import Comparison
from vqcompress.report.grid import image_grid
from vqcompress.report.html import to_html
from vqcompress.report.markdown import to_markdown
from vqcompress.report.pictures import encode


def write_report(comparison: Comparison, folder: str | Path) -> Path:
    """Write ``report.html``, ``report.json``, ``report.md`` and ``grid.png`` into ``folder``, made if need be.

    Everything is rendered before the first file is touched, and each file replaces its older self in one step. Returns
    the path of ``report.html``.
    """
    files = {
        "report.json": _json(comparison),
        "report.md": to_markdown(comparison).encode(),
        "report.html": to_html(comparison).encode(),
    }
    if comparison.pictures:
        files["grid.png"] = encode(image_grid(comparison.pictures, comparison.settings.prompts))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _replace(folder / name, content)
    return folder / "report.html"


def _json(comparison: Comparison) -> bytes:
    return (json.dumps(comparison.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
