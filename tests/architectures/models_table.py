"""docs/pipelines.md: what the tests of every pipeline class found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from diffusers import DiffusionPipeline

from vqcompress.architectures.layer_plan import LayerPlan

DOCUMENT = Path(__file__).parents[2] / "docs" / "pipelines.md"
TEST = "tests/architectures/test_every_pipeline.py"
UNFIT = ("a bare parameter", "a grouped conv", " is neither ", "only ", "shares its weight")
"""How reasons begin, or what they contain, of weights that no code fits."""
LONGEST = 200  # characters of a reason
ROW, REASON = 7, 2  # columns of the two tables
SHORT = {
    "sees one row": "time, sizes, pooled",
    "reads the bare": "reads latents",
    "writes the est": "writes the output",
    "no call of the": "not reached",
}


@dataclass(frozen=True)
class Shown:
    """What a row says beside its plans: inputs given, the lowest share of a denoiser's blocks that is coded, and why
    the class was not quantized (None if it was)."""

    inputs: list[str]
    blocks: float
    why_not: str | None = None


@dataclass
class Table:
    """A row for each class that was planned, a reason for each that was not."""

    rows: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seen: set[tuple[str, str]] = field(default_factory=set)

    def is_new(self, pipeline: DiffusionPipeline, component: str) -> bool:
        """Whether no pipeline of this package with this kind of denoiser came before."""
        key = type(getattr(pipeline, component)).__name__, type(pipeline).__module__.split(".")[2]
        new = key not in self.seen
        self.seen.add(key)
        return new

    def leave_out(self, name: str, reason: str) -> None:
        self.left_out[name] = reason.splitlines()[0].rstrip(".").replace("|", "/")[:LONGEST]

    def add(self, name: str, pipeline: DiffusionPipeline, plans: dict[str, list[LayerPlan]], shown: Shown) -> None:
        denoisers = ", ".join(f"`{part}`: {type(getattr(pipeline, part)).__name__}" for part in plans)
        every = [plan for found in plans.values() for plan in found if not is_unfit(plan)]
        coded = sum(size(plan) for plan in every if plan.reason is None) / max(1, sum(map(size, every)))
        kept: dict[str, int] = {}
        for plan in every:
            if plan.reason is not None:
                short = next((text for start, text in SHORT.items() if plan.reason.startswith(start)), plan.reason)
                kept[short] = kept.get(short, 0) + 1
        reasons = ", ".join(f"{text} ({count})" for text, count in sorted(kept.items()))
        given, opened = ", ".join(["prompt", *shown.inputs]), "yes" if shown.why_not is None else f"no: {shown.why_not}"
        cells = (name, denoisers, f"{coded:.0%}", f"{shown.blocks:.0%}", reasons, given, opened)
        self.rows[name] = f"| {' | '.join(cells)} |"

    def markdown(self, written: str = "") -> str:
        """The document. Lines of ``written``, an earlier one, stay for classes that were not driven this time."""
        rows = lines_by_class(written, ROW) | self.rows
        left_out = lines_by_class(written, REASON) | {
            name: f"| {name} | {reason} |" for name, reason in self.left_out.items()
        }
        rows = {name: row for name, row in rows.items() if name not in self.left_out}
        left_out = {name: line for name, line in left_out.items() if name not in rows}
        head = [
            "# Pipelines of diffusers",
            "",
            f"Written by `pytest {TEST} --write-models`, with diffusers {version('diffusers')} on CPU.",
            "Each class is built with tiny networks of random weights, planned and called, then calibrated, quantized,",
            "opened again bit for bit and drawn with. With `-k`, the other lines stay.",
            "",
            "The first share is of all weights that a code fits, in these tiny networks, whose embedders are as large",
            "as their blocks; the second of the blocks' weights without projections of time, at least 95 % everywhere.",
            "What stays dense is what one call of the denoiser shows: layers that read latents before any block, that",
            "see one row for each image, or that write the output. The test draws with other noise to check that.",
            "",
            "| class | denoisers | coded | of the blocks | stays dense (layers) | given | opened again |",
            "|---|---|---|---|---|---|---|",
        ]
        rest = ["", "## Not tried, and why", "", "| class | why |", "|---|---|"]
        counts = f"{len(rows)} classes are driven, {len(left_out)} are not."
        return "\n".join([*head[:-2], counts, "", *head[-2:], *_sorted(rows), *rest, *_sorted(left_out), ""])


def lines_by_class(document: str, cells: int) -> dict[str, str]:
    """The lines of tables with so many columns in an earlier document, by their first cell."""
    lines = [line for line in document.splitlines() if line.startswith("| ") and line.count(" | ") == cells - 1]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if "Pipeline" in line.split(" | ")[0]}


def _sorted(lines: dict[str, str]) -> list[str]:
    return [lines[name] for name in sorted(lines)]


def is_unfit(plan: LayerPlan) -> bool:
    """Whether no code fits the weight, whatever the rules."""
    return plan.reason is not None and any(words in plan.reason for words in UNFIT)


def size(plan: LayerPlan) -> int:
    return math.prod(plan.shape)
