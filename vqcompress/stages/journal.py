"""A run's last steps: publish, note that it is published, clear up. A kill between any two of them is made good.

The journal is one small file beside the run's folder. It is written before the folder is published, and says what the
published folder will be; it is removed last. So at the next start, a journal that fits what is in the output's place
means that all was done but the clearing up.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqcompress.checkpoint import MANIFEST_NAME
from vqcompress.checkpoint.publication import naming_disk_problems, remove_stale_partials
from vqcompress.disk import replace_file


@dataclass(frozen=True)
class Journal:
    """That of a run which works in the folder ``work`` and publishes ``output``. ``command`` is what it was asked."""

    work: Path
    output: Path
    command: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The journal's file."""
        return self.work.with_name(f".{self.work.name}.journal")

    def write(self, partial: Path, result: Mapping[str, Any] | None = None) -> None:
        """Note that ``partial`` is about to be published, and the run's ``result`` (JSON values)."""
        entry = {"manifest": _hash_of(partial), "command": self._command_hash(), "result": result}
        with naming_disk_problems(self.path):
            replace_file(self.path, lambda new: new.write_text(json.dumps(entry) + "\n", encoding="utf-8"))

    def clear(self) -> None:
        """Remove what the published run leaves: its folder, then the journal."""
        with naming_disk_problems(self.work):
            if self.work.exists():
                shutil.rmtree(self.work)
            self.path.unlink(missing_ok=True)

    def settle(self) -> dict[str, Any] | None:
        """Clear up after a run that was killed once it had published. Its entry, if it was this very command's."""
        entry = self._entry()
        if entry.get("manifest") is None or entry["manifest"] != _hash_of(self.output):
            return None
        remove_stale_partials(self.output)
        self.clear()
        return entry if entry.get("command") == self._command_hash() else None

    def _entry(self) -> dict[str, Any]:
        try:
            entry = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return entry if isinstance(entry, dict) else {}

    def _command_hash(self) -> str:
        return hashlib.sha256(json.dumps(self.command, sort_keys=True).encode()).hexdigest()


def _hash_of(folder: Path) -> str | None:
    try:
        return hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()
    except OSError:
        return None
