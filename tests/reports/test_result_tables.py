"""The README's table comes from a stamped result alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import result_tables
from vqcompress.reports.comparison import Comparison

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_holds_the_table_of_the_stamped_result() -> None:
    assert result_tables.peers_table(result_tables.read(result_tables.STAMPED)) in README.read_text(encoding="utf-8")


def test_rows_stand_by_size_and_say_what_was_measured(comparison: Comparison) -> None:
    first = comparison.variants[0]
    small = replace(first, label="small", denoiser_bytes=1_230_000, image_values={"psnr": (10.0, 30.0, 20.0)})
    lines = result_tables.peers_table(replace(comparison, variants=(first, small))).splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells[0].strip("*") == "small"
    assert cells[2] == "1.23"
    assert cells[4] == "20.0, 10.0–30.0"
    assert cells[5] == "10.0"
    assert f"{first.denoiser_bytes / 1e6:.2f}" in lines[3]
