"""The report as Markdown, for repositories and issue threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vqcompress.reports.comparison import Comparison
from vqcompress.reports.components import NOTE, components_table
from vqcompress.reports.experts import NOTE as EXPERTS_NOTE
from vqcompress.reports.experts import experts_table
from vqcompress.reports.fidelity import NOTE as FIDELITY_NOTE
from vqcompress.reports.fidelity import fidelity_table
from vqcompress.reports.table import Heading, Line, variants_table
from vqcompress.reports.verdicts import verdict_lines
from vqcompress.reports.wording import TABLE_NOTE, layer_notes, measured, summary, title


def to_markdown(comparison: Comparison) -> str:
    """Title, summary, table of variants, verdicts against the neighbours in size, and how all was measured."""
    return "\n".join(_blocks(comparison))


def _blocks(comparison: Comparison) -> Iterator[str]:
    yield f"# {escape(title(comparison))}\n"
    yield f"{escape(summary(comparison))}\n"
    table = variants_table(comparison)
    yield from _table(table.headings, table.lines)
    yield f"\n{TABLE_NOTE}\n"
    yield "## Fidelity of the images\n"
    fidelity = fidelity_table(comparison)
    yield from _table(fidelity.headings, fidelity.lines)
    yield f"\n{FIDELITY_NOTE}\n"
    if components := components_table(comparison):
        yield "## What each component costs\n"
        yield f"{NOTE}\n"
        yield from _table(components.headings, components.lines)
        yield ""
    if comparison.missing:
        yield "## Not compared\n"
        yield from (f"- {escape(sentence)}" for sentence in comparison.missing)
        yield ""
    if comparison.pictures:
        yield "![images of the original and of each variant, from the same seeds](grid.png)\n"
    if comparison.verdicts:
        yield "## Against the neighbours in size\n"
        lines = verdict_lines(comparison.verdicts)
        yield from (f"- {line.outcome}: **{escape(line.subject)}** {escape(line.text)}" for line in lines)
        yield ""
    if notes := layer_notes(comparison):
        yield "## Layers\n"
        yield from (f"- {escape(note)}" for note in notes)
        yield ""
    if experts := experts_table(comparison):
        yield "## Experts\n"
        yield f"{EXPERTS_NOTE}\n"
        yield from _table(experts.headings, experts.lines)
        yield ""
    yield "## How this was measured\n"
    yield from (f"- {escape(sentence)}" for sentence in measured(comparison))
    yield ""


def _table(headings: Sequence[Heading], lines: Sequence[Line]) -> Iterator[str]:
    names = [f"{heading.name}, {heading.remark}" if heading.remark else heading.name for heading in headings]
    yield _row(["variant", *names])
    yield _row([":---", *["---:"] * len(headings)])
    for line in lines:
        yield _row([escape(line.label), *(f"{cell.text} {cell.remark}".strip() for cell in line.cells)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Text whose characters mean nothing to Markdown, on one line."""
    plain = " ".join(text.split())
    for character in "\\|*_`<[":
        plain = plain.replace(character, f"\\{character}")
    return plain
