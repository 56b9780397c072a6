"""Published numbers: stamped documents are what their numbers say, and README's numbers stand in one of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import evidence
from vqcompress.reports import write_report

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"

NUMBER = re.compile(r"(?<![\w.#/-])(?<!Python )\d*\.\d+(?![\w.])")
"""Measured numbers: with a decimal point, and no part of a name, a version or a path."""


def numbers(text: str) -> list[str]:
    """Numbers outside code, links and version bounds, without the zero before their point."""
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", " ", text, flags=re.DOTALL)
    return [number.lstrip("0") for number in NUMBER.findall(prose)]


def stamped() -> list[Path]:
    """Results with a stamp."""
    files = (path for path in sorted(RESULTS.glob("*.json")))
    return [path for path in files if "stamp" in json.loads(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", stamped() or [pytest.param(None, marks=pytest.mark.skip("no result is stamped yet"))])
def test_a_stamped_document_is_what_its_numbers_say(path):
    data = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == evidence.render(path.stem, data)
    assert data["stamp"].keys() == {"commands", "version", "commit", "machine", "date", "seconds"}
    assert path.stem in {result.name for result in evidence.TABLE}


def test_every_document_of_results_is_stamped():
    documents = {path.name for path in RESULTS.glob("*.md")}
    with_stamp = {f"{path.stem}.md" for path in stamped()}
    assert documents == with_stamp, "give it a row in benchmarks/evidence.py and let that write it"


@pytest.mark.parametrize("document", ["README.md", "docs/comparison.md"])
def test_every_number_stands_in_a_stamped_result(document):
    known = {number for path in stamped() for number in numbers(path.with_suffix(".md").read_text(encoding="utf-8"))}
    strange = [each for each in numbers((ROOT / document).read_text(encoding="utf-8")) if each not in known]
    assert not strange, f"numbers of {document} stand in no document of docs/results: {strange}"


MEASURED = ("kernels", "finetune", "scale", "quantizers")
"""Documents with tables of measurements."""
SHOWN = re.compile(r"<!-- (?P<name>[\w-]+): begin -->\n(?P<table>.*?)<!-- (?P=name): end -->", re.DOTALL)


@pytest.mark.parametrize("document", [f"docs/{name}.md" for name in MEASURED])
def test_no_table_is_typed(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for shown in SHOWN.finditer(text):
        data = json.loads((RESULTS / f"{shown['name']}.json").read_text(encoding="utf-8"))
        assert shown["table"] == data["table"].strip() + "\n", f"make evidence RESULT={shown['name']} writes it"
    rest = [line for line in SHOWN.sub("", text).splitlines() if line.startswith("|")]
    assert not numbers("\n".join(rest)), "a table with measured numbers goes between <!-- NAME: begin --> and end"


def test_every_result_has_a_document():
    assert {result.name for result in evidence.TABLE} == {path.stem for path in stamped()}


def test_a_table_goes_where_documents_show_it(tmp_path):
    (tmp_path / "results").mkdir()
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- rows: begin -->\n| old |\n<!-- rows: end -->\n<!-- other: begin -->\nkept\n")
    made = evidence.Result("rows", ("python -c 'print(r\"| a\\1 |\")'",))
    evidence.renew(made, folder=tmp_path / "results", documents=tmp_path)
    assert page.read_text() == (
        "before\n<!-- rows: begin -->\n| a\\1 |\n<!-- rows: end -->\n<!-- other: begin -->\nkept\n"
    )


def test_numbers_are_found_where_they_are_claims():
    text = "At 3.05 bits `a 1.5` Python 3.11+ [x](y/2.5) | .096 % | 0.12 (v0.1.0, torch 2.13.0)\n```\n9.9\n```\n"
    assert numbers(text) == ["3.05", ".096", ".12"]


def test_a_result_is_written_with_its_stamp_and_renders_again(comparison, tmp_path):
    write_report(comparison, tmp_path / "made")
    result = evidence.Result("some", ("vqcompress report a b",), str(tmp_path / "made" / "report.json"))
    evidence.renew(result, run=False, folder=tmp_path)
    data = json.loads((tmp_path / "some.json").read_text())
    text = (tmp_path / "some.md").read_text()
    assert text == evidence.render("some", data)
    assert "vqcompress report a b" in text
    assert "| trellis 3-bit |" in text
    data["report"]["variants"][0]["denoiser_bytes"] += 1_000_000
    assert evidence.render("some", data) != text


def test_a_command_that_fails_writes_nothing(tmp_path):
    result = evidence.Result("bad", ("python -c 'raise SystemExit(3)'",))
    with pytest.raises(click.ClickException, match="ended with 3"):
        evidence.renew(result, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_table_is_what_its_command_prints(tmp_path):
    evidence.renew(evidence.Result("rows", ("python -c 'print(\"| a | 1.5 |\")'",)), folder=tmp_path)
    assert (tmp_path / "rows.md").read_text().endswith("\n| a | 1.5 |\n")


def test_results_are_listed_and_unknown_ones_refused():
    listed = CliRunner().invoke(evidence.main, ["--list"])
    assert "shapes-dit-peers\n  vqcompress quantize shapes-dit" in listed.output
    assert "no result is called 'nope'" in CliRunner().invoke(evidence.main, ["nope"]).output


def test_a_command_has_the_environment_before_it():
    printed = evidence.run_command("SOME_THREADS=3 python -c 'import os; print(os.environ[\"SOME_THREADS\"])'")
    assert printed.strip() == "3"


def test_what_would_not_be_measured_again_is_removed_first(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "measured.json").write_text("old")
    look = f"python -c 'import os; print(os.path.exists(\"{tmp_path / 'work'}\"))'"
    evidence.renew(evidence.Result("rows", (look,), starts_without=str(tmp_path / "work")), folder=tmp_path)
    assert (tmp_path / "rows.md").read_text().endswith("\nFalse\n")
