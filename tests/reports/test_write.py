import json
from dataclasses import replace

import pytest

from vqcompress.reports import Comparison, write_report
from vqcompress.reports.write import PAGES

FILES = {"report.html", "report.json", "report.md", "grid.png"}


def test_same_findings_give_the_same_bytes(comparison, tmp_path):
    for name in ("a", "b"):
        assert write_report(comparison, tmp_path / name) == tmp_path / name / "report.html"
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES


def test_json_file_is_the_comparison(comparison, tmp_path):
    write_report(comparison, tmp_path)
    assert Comparison.from_json(json.loads((tmp_path / "report.json").read_text())) == comparison


def test_a_report_without_pictures_names_no_grid(comparison, tmp_path):
    write_report(replace(comparison, pictures={}), tmp_path)
    assert not (tmp_path / "grid.png").exists()
    assert "grid.png" not in (tmp_path / "report.md").read_text()


def test_a_failure_leaves_the_old_report_whole(comparison, tmp_path):
    write_report(comparison, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}

    def fail(_):
        raise RuntimeError("no plots today")

    with pytest.raises(RuntimeError, match="no plots today"):
        write_report(replace(comparison, model="other"), tmp_path, {**PAGES, "report.html": fail})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
