"""A slice of the fuzzed folders, the same in every run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import cases
from tests.fuzz.cases import Case, make
from tests.fuzz.folders import honest_folders
from tests.fuzz.pipeline_files import recipe

ROOT = Path(__file__).parents[2]
CASES = 120


@pytest.mark.slow
def test_a_slice_has_no_faults(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "tests.fuzz", "--cases", str(CASES), "--seed", "0", "--out", str(tmp_path)]
    result = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert f"{CASES} cases" in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "seed-0.jsonl").read_text().splitlines()]
    kinds = {kind for line in lines for kind in line["kinds"].values()}
    assert {"ok", "refused"} <= kinds  # a slice in which nothing is refused, or nothing opens, would show nothing


def test_a_case_is_its_seed_and_index(tmp_path: Path) -> None:
    honest = honest_folders(tmp_path / "honest")
    for index in range(40):
        made = []
        for home in (tmp_path / f"a{index}", tmp_path / f"b{index}"):
            home.mkdir()
            case = make(Case(7, index), honest, home)
            files = sorted(path for path in home.rglob("*") if path.is_file() and not path.is_symlink())
            made.append((case.changes, case.stale, [(path.name, path.read_bytes()) for path in files]))
        assert made[0] == made[1]


def test_a_pipe_that_a_mutation_left_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "SECONDS", 0.2)
    monkeypatch.setattr(cases, "KINDS", ((recipe,),))
    os.mkfifo(tmp_path / "vqcompress_recipe.yaml")
    assert cases._mutated(random.Random(0), tmp_path) == "recipe: nothing left to change (TimeoutError)"
