"""Collects what works with what; ``pytest tests/integrations --write-compatibility`` writes docs/compatibility.md."""

from __future__ import annotations

from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
KINDS = ("UNet", "DiT", "text encoder")
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft")
RESULTS: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
# Where there is nothing to test: upstream has no such operation for this kind.
NOTHING_THERE = {("fusing projections is refused, with the alternative", "text encoder")}

TODAY = Path(__file__).with_name("users_today.md")
"""What other toolkits give to users; the same columns are asked of us by tests."""
ANSWERS: dict[str, list[bool]] = defaultdict(list)
OURS = {
    "bits": "fractions too (tested at 2.5)",
    "LoRA": "yes: Linear and Conv2d",
    "calibrated": "yes",
    "single file": "yes",
}


def pytest_configure(config):
    config.addinivalue_line("markers", "today(*columns): columns of the table of toolkits that this test answers")
    config.addinivalue_line(
        "markers", "feature(name, *kinds): a row of docs/compatibility.md; kinds default to the parameter `kind`"
    )


def pytest_addoption(parser):
    parser.addoption("--write-compatibility", action="store_true", help="write docs/compatibility.md")


def pytest_collection_modifyitems(items):
    """Note with each test what it shows, in a form that its report carries, from another process too."""
    for item in items:
        for mark in item.iter_markers("feature"):
            kinds = mark.args[1:] or (item.callspec.params["kind"],)
            item.user_properties += [("feature", (mark.args[0], kind)) for kind in kinds]
        for mark in item.iter_markers("today"):
            item.user_properties += [("today", column) for column in mark.args]


def pytest_runtest_logreport(report):
    if report.skipped or (report.when != "call" and report.passed):
        return
    for what, shown in report.user_properties:
        if what == "feature":
            RESULTS[shown[0]][shown[1]].append(report.passed)
        elif what == "today":
            ANSWERS[shown].append(report.passed)


def pytest_sessionfinish(session):
    is_worker = hasattr(session.config, "workerinput")
    if session.config.getoption("--write-compatibility", default=False) and not is_worker:
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
        *_lowest(),
        "",
        f"| | {' | '.join(KINDS)} |",
        f"|---|{'---|' * len(KINDS)}",
    ]
    rows = [f"| {name} | {' | '.join(_cell(name, kind) for kind in KINDS)} |" for name in sorted(RESULTS, key=_plain)]
    return "\n".join([*lines, *rows, "", *_today(), ""])


def _lowest() -> list[str]:
    """What `make test-lowest` installs of the same libraries."""
    from tests import lowest_versions as script

    pinned = dict(line.split("==") for line in script.lowest(script.declared()) if line.split("==")[0] in LIBRARIES)
    versions = ", ".join(f"{name} {pinned[name]}" for name in LIBRARIES if name != "torch")
    return [
        "CI runs the tests behind these cells a second time with the lowest versions that `pyproject.toml` declares "
        f"({versions}, and everything else at its lowest), with these exceptions: the slow ones, which are compiling "
        "and peak memory; group offload and `from_single_file` on a component's own weight file, which diffusers "
        f"{pinned['diffusers']} does not have on a machine without an accelerator, or not for quantizers. Torch is "
        f"the same both times: of the lowest, {pinned['torch']}, there is only a build with CUDA libraries for Linux, "
        f"4 GB to download; `make test-lowest LOWEST_TORCH=torch=={pinned['torch']}.0` runs with it.",
    ]


def _plain(name: str) -> str:
    return name.replace("`", "").lower()


def _cell(name: str, kind: str) -> str:
    return "–" if (name, kind) in NOTHING_THERE else _answer(RESULTS[name].get(kind))


def _answer(outcomes: list[bool] | None) -> str:
    if not outcomes:
        return "not tested"
    return "yes" if all(outcomes) else "no"


def _today() -> list[str]:
    """The table of toolkits with our row, each of whose cells stands for tests too."""
    table = TODAY.read_text(encoding="utf-8").splitlines()
    columns = [column.strip() for column in table[0].strip("|").split("|")][1:]
    answers = [_answer(ANSWERS.get(column)) for column in columns]
    cells = [
        OURS.get(column, "yes") if answer == "yes" else answer for column, answer in zip(columns, answers, strict=True)
    ]
    return [
        "## What users have today",
        "",
        "Other toolkits as their source and documentation say; the last row is what the tests here show.",
        "",
        *table,
        f"| **vqcompress** | {' | '.join(cells)} |",
    ]
