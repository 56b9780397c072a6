"""The tables of the README come from reports alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import result_tables
from vqcompress.report.comparison import Comparison


def test_rows_stand_where_their_scheme_and_width_say(comparison: Comparison) -> None:
    (trellis,) = [
        variant
        for variant in comparison.variants
        if variant.method == "trellis" and round(variant.bits_per_weight) == 3
    ]
    mixed = replace(trellis, label="trellis 3-bit mixed", scheme="", denoiser_bytes=7_770_000)
    both = replace(comparison, variants=(*comparison.variants, mixed))
    mixed_line = next(line for line in result_tables.budget_table(both, True).splitlines() if "trellis" in line)
    same_line = next(line for line in result_tables.budget_table(both, False).splitlines() if "trellis" in line)
    assert f"{trellis.denoiser_bytes / 1e6:.2f} MB" in same_line.split("|")[3]
    assert "7.77 MB" in mixed_line.split("|")[3]
    assert mixed_line.split("|")[2].strip() == "–"


def test_the_script_prints_all_tables(comparison: Comparison, tmp_path: Path, monkeypatch, capsys) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(comparison.to_json()))
    monkeypatch.setattr("sys.argv", ["result_tables.py", str(path), str(path)])
    result_tables.main()
    printed = capsys.readouterr().out
    assert f"| **{comparison.variants[0].label}** |" in printed
    assert printed.count("| `gptq` |") == 1
