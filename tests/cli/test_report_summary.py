"""In a terminal, a report is said in lines that fit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reports.conftest import make_comparison
from vqcompress.cli.report_summary import print_summary


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a terminal of some width shows, without colours."""
    monkeypatch.setenv("TERM", "dumb")

    def show(width: int, missing: tuple[str, ...] = ()) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        print_summary(replace(make_comparison(), missing=missing), Path("out/report"))
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize("width", [80, 120])
def test_every_line_fits_and_every_variant_has_its_numbers_in_one(printed: Callable[..., str], width: int) -> None:
    comparison, lines = make_comparison(), printed(width).splitlines()
    assert 60 < max(map(len, lines)) <= width
    for variant in comparison.variants:
        row = next(line for line in lines if line.startswith(f"{variant.label} ") and " stores " not in line).rstrip()
        assert row.removeprefix(variant.label).split()[0] == f"{variant.bits_per_weight:.2f}"
        assert row.endswith(f"{variant.time_ratio:.2f}")
    assert any("out/report/report.html" in line for line in lines)


def test_verdicts_and_what_was_not_compared_are_said(printed: Callable[..., str]) -> None:
    text = printed(100, missing=("nf4: not installed",))
    assert "better: trellis 3-bit at 6.07" in text
    assert "not compared: nf4: not installed" in text
