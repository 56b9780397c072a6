"""A dry run tells layers, bytes, memory and time, and allocates nothing."""

from __future__ import annotations

import json
import resource
import time

import pytest
from click.testing import CliRunner

from vqcompress.architectures.published import PUBLISHED
from vqcompress.cli.dry_run import dry_run_lines
from vqcompress.cli.main import main
from vqcompress.errors import ArchitectureError
from vqcompress.estimate import _seconds_per_weight, estimate
from vqcompress.recipe import Recipe


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_the_largest_model_is_planned_without_being_allocated() -> None:
    estimate("dit-s-2", Recipe(model="dit-s-2", method="rtn"))  # pays for imports
    before = peak_bytes()
    found = json.loads(run("quantize", "dit-moe-g", "--dry-run", "--method", "gptq", "--json"))
    assert peak_bytes() - before < 400e6
    assert found["weights"] == PUBLISHED["dit-moe-g-16e2a"].parameters
    assert found["bytes_before"] == 2 * found["weights"]
    assert found["quantized_layers"] == 2164 - 4  # but the two of the time embedder and the two of the final layer
    after = found["bytes_by_bits"]
    assert after["2"] < after["3"] == found["bytes_after"] < after["4"] < found["bytes_before"] / 3
    assert found["peak_memory_bytes"] > 4 * found["weights"]
    assert found["encode_seconds"] > 60


@pytest.mark.parametrize("name", ["sd15", "pixart-alpha-256", "dit-xl-2", "sit-s-2", "mdt-v2", "diffit-512", "pt-dit"])
def test_published_sizes_are_planned(name: str) -> None:
    text = run("quantize", name, "--dry-run", "--method", "rtn")
    for word in (f"{name}: ", "bytes before", "at 2 bits", "at 3 bits", "at 4 bits", "peak memory", "encoding"):
        assert word in text


def test_vector_codes_count_what_they_are_asked_for() -> None:
    found = estimate("dit-s-2", Recipe(model="dit-s-2", method="gptq", bits=4))
    dense = 2 * (found["weights"] - found["quantized_weights"])
    stored = 8 * (found["bytes_after"] - dense) / found["quantized_weights"]
    assert stored == pytest.approx(4 + 10 / 32, abs=1e-3)
    assert found["moment_bytes"] > 0
    assert found["prompts"] == 64


def test_a_part_that_only_the_pipeline_has_needs_the_pipeline() -> None:
    with pytest.raises(ArchitectureError, match="vqcompress convert"):
        estimate("dit-moe-b", Recipe(model="dit-moe-b", components=("text_encoder",), method="rtn"))


def test_only_a_dry_run_needs_no_folder() -> None:
    result = CliRunner().invoke(main, ["quantize", "shapes"])
    assert result.exit_code == 2
    assert "-o FOLDER" in result.stderr


def test_presets_are_listed() -> None:
    text = run("presets")
    for name in (*PUBLISHED, "shapes", "dit-moe-b"):
        assert name in text
    rows = json.loads(run("presets", "dit-moe", "--json"))
    assert [row["name"] for row in rows] == [name for name in PUBLISHED if "dit-moe" in name]
    assert CliRunner().invoke(main, ["presets", "nothing-like-it"]).exit_code == 2


def test_sequential_order_tells_what_it_keeps_on_disk() -> None:
    recipe = Recipe.parse({"model": "sdxl", "calibration": {"order": "sequential"}, "training": {"budget_gb": 3.0}})
    assert any("3.00 GB" in line and "replays" in line for line in dry_run_lines(estimate("sdxl", recipe)))
    assert not any("replays" in line for line in dry_run_lines(estimate("sdxl", Recipe(model="sdxl"))))


def test_what_else_the_machine_does_is_not_in_the_encoding_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqcompress.estimate.quantize_weight", lambda *_, **__: time.sleep(0.2))
    assert _seconds_per_weight(Recipe(model="shapes", method="rtn", bits=4)) * 256 * 256 < 0.1
