"""Collects what works with what; ``pytest tests/integrations --write-compatibility`` writes docs/compatibility.md."""

from __future__ import annotations

from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
KINDS = ("UNet", "DiT", "text encoder")
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft")
RESULTS: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))


def pytest_configure(config):
    config.addinivalue_line("markers", "feature(name, *kinds): a row of docs/compatibility.md, for kinds of component")


def pytest_addoption(parser):
    parser.addoption("--write-compatibility", action="store_true", help="write docs/compatibility.md")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" or (report.when == "setup" and report.failed):
        for mark in item.iter_markers("feature"):
            for kind in mark.args[1:]:
                RESULTS[mark.args[0]][kind].append(report.passed)


def pytest_sessionfinish(session):
    if session.config.getoption("--write-compatibility", default=False):
        DOCUMENT.write_text(compatibility(), encoding="utf-8")


def compatibility() -> str:
    """The table, as Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = [
        "# What works with compressed components",
        "",
        "Written by `pytest tests/integrations --write-compatibility`: each cell stands for tests that ran.",
        "",
        f"Last run with {versions}, on CPU.",
        "",
        f"| | {' | '.join(KINDS)} |",
        f"|---|{'---|' * len(KINDS)}",
    ]
    rows = [f"| {name} | {' | '.join(_cell(kinds.get(kind)) for kind in KINDS)} |" for name, kinds in RESULTS.items()]
    return "\n".join([*lines, *rows, ""])


def _cell(outcomes: list[bool] | None) -> str:
    if not outcomes:
        return "not tested"
    return "yes" if all(outcomes) else "no"
