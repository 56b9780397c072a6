"""Prints what ``pip install -c`` needs to install the lowest versions that ``pyproject.toml`` declares.

    python tests/lowest_versions.py --except torch > lowest.txt

Runs without anything installed, since it comes before the installation.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("lora", "test")
BOUND = re.compile(r"(?P<name>[\w.-]+)\s*>=\s*(?P<version>[\w.]+)")


def lowest(project: Mapping[str, Any], leave_out: Collection[str] = ()) -> list[str]:
    """Constraints ``name==version``, with the marker where one is declared, of ``[project]`` and its `EXTRAS`.

    Raises `ValueError` for a requirement without a lower bound, and for a package that has two.
    """
    extras = project["optional-dependencies"]
    found: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(each for extra in EXTRAS for each in extras[extra])]:
        name, constraint = _pinned(requirement)
        if found.setdefault(name, constraint) != constraint:
            raise ValueError(f"pyproject.toml gives {name} two lower bounds: {found[name]} and {constraint}")
    return [constraint for name, constraint in found.items() if name not in leave_out]


def declared() -> dict[str, Any]:
    """``[project]`` of `PYPROJECT`."""
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]


def _pinned(requirement: str) -> tuple[str, str]:
    versions, _, marker = requirement.partition(";")
    bound = BOUND.match(versions)
    if bound is None:
        raise ValueError(f"{requirement!r} in pyproject.toml has no lower bound, so nobody can say what the lowest is")
    pinned = f"{bound['name']}=={bound['version']}"
    return bound["name"], f"{pinned}; {marker.strip()}" if marker else pinned


if __name__ == "__main__":
    sys.stdout.write("\n".join(lowest(declared(), sys.argv[2:])) + "\n")
