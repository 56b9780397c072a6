"""A copy of the package with a change in it, to prove that one file and one line are enough to add something."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACED = {"cli": "cli", "calib_prompts": "calib_prompts", "shapes": "shapes"}  # as pyproject's package-dir places them

Insertion = tuple[str, str]
"""``(before, line)``: ``line`` goes in before the first occurrence of ``before``."""


class PatchedPackage:
    """``vqcompress`` in ``folder``: links to the real files, but for those that are added or replaced.

    ``files`` maps paths below the package to their whole text; ``lines`` maps paths to what goes into them.
    """

    def __init__(
        self, folder: Path, files: Mapping[str, str], lines: Mapping[str, Insertion | list[Insertion]]
    ) -> None:
        self.root = folder
        package = folder / "vqcompress"
        _link(ROOT / "vqcompress", package, {*files, *lines})
        for name, place in PLACED.items():
            if below := {path.split("/", 1)[1] for path in (*files, *lines) if path.startswith(f"{name}/")}:
                _link(ROOT / place, package / name, below)
            else:
                (package / name).symlink_to(ROOT / place)
        for name, text in files.items():
            (package / name).write_text(text)
        for name, insertions in lines.items():
            placed = name.split("/", 1)[0] in PLACED
            text = (ROOT / name if placed else ROOT / "vqcompress" / name).read_text()
            for before, line in insertions if isinstance(insertions, list) else [insertions]:
                assert before in text, f"{name} has no {before!r} any more"
                text = text.replace(before, f"{line}{before}", 1)
            (package / name).unlink(missing_ok=True)
            (package / name).write_text(text)

    def run(self, code: str) -> str:
        """What ``code`` prints in a Python of its own that imports this package."""
        hide_installed = (  # an editable install finds the package before the path does
            "import sys\n"
            "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", hide_installed + code],
            capture_output=True, text=True, cwd=self.root, env={**os.environ, "PYTHONPATH": str(self.root)},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


def _link(real: Path, linked: Path, changed: set[str]) -> None:
    """Links to all that lies in ``real``; folders in which ``changed`` paths lie are made anew."""
    linked.mkdir(parents=True)
    for path in real.iterdir():
        below = {name.split("/", 1)[1] for name in changed if name.startswith(f"{path.name}/")}
        if below:
            _link(path, linked / path.name, below)
        elif path.name not in changed and path.name != "__pycache__":
            (linked / path.name).symlink_to(path)
