"""Triton kernels compiled for GPUs that are not here: no spills, and room for enough programs at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernel_artefacts.py"
REGISTER_FILE, SHARED_OF_A_PROCESSOR = 65536, {80: 164 << 10, 89: 100 << 10, 90: 228 << 10}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--json"], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_every_kernel_is_compiled_for_every_gpu(artefacts):
    kernels = {row["kernel"].split(",")[0] for row in artefacts}
    assert kernels >= {
        f"{verb}_{name}" for verb in ("decode", "multiply") for name in ("trellis", "additive", "scalar")
    }
    assert {"finish", "viterbi"} <= kernels
    assert {row["capability"] for row in artefacts} == {80, 89, 90}


def test_nothing_is_spilled(artefacts):
    assert [row for row in artefacts if row["spilled"]] == []


def test_two_programs_fit_a_processor(artefacts):
    for row in artefacts:
        if row["kernel"].startswith("viterbi"):  # one program, a value table in its registers, is enough
            assert 32 * row["warps"] * row["registers"] <= REGISTER_FILE, row
            continue
        assert 2 * 32 * row["warps"] * row["registers"] <= REGISTER_FILE, row
        assert 2 * row["shared"] <= SHARED_OF_A_PROCESSOR[row["capability"]], row
        if row["kernel"].startswith("decode"):  # bound by memory: needs many loads under way
            assert row["registers"] <= 80, row
