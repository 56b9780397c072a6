"""``--json`` of every verb against the table of keys in docs/command-line.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.checkpoint.make_old_folders import tiny_pipeline
from tests.fuzz.folders import honest_folders
from tests.test_house_law import ROOT
from vqcompress.cli.main import VERBS, main

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def documented(verb: str) -> set[str]:
    """Keys that the table lists for a verb; those in brackets belong to a key's value."""
    text = (ROOT / "docs" / "command-line.md").read_text()
    rows = [row.strip("|").split(" | ") for row in text.splitlines() if row.startswith("| `")]
    (keys,) = [keys for verbs, keys, *_ in rows if f"`{verb}`" in verbs and len(keys) > 3]
    plain = re.sub(r"\(.*?\)|; of.*", "", keys)
    return set(re.findall(r"`(\w+)`", plain))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return honest_folders(tmp_path_factory.mktemp("honest"), tiny_pipeline())["whole"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_it(verb: str) -> None:
    said = CliRunner().invoke(main, [verb, "--help"]).output
    assert "--json" in said
    assert f"`{verb}`" in (ROOT / "docs" / "command-line.md").read_text()


@pytest.mark.parametrize(
    ("row", "arguments"),
    [
        ("quantize --dry-run", ("quantize", "shapes", "--dry-run", "-o", "OUT")),
        ("inspect", ("inspect", "PACKED")),
        ("verify", ("verify", "PACKED")),
        ("bundle", ("bundle", "PACKED", "-o", "OUT.safetensors")),
        ("dequantize", ("dequantize", "PACKED", "-o", "OUT")),
        ("push", ("push", "PACKED", "me/x", "--base", SDXL, "--dry-run")),
        ("env", ("env",)),
        ("presets", ("presets",)),
    ],
)
def test_keys_are_those_of_the_table(row: str, arguments: tuple[str, ...], packed: Path, tmp_path: Path) -> None:
    places = {"PACKED": str(packed), "OUT": str(tmp_path / "out"), "OUT.safetensors": str(tmp_path / "o.safetensors")}
    result = CliRunner().invoke(main, [*(places.get(word, word) for word in arguments), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (set(found) if isinstance(found, dict) else set(found[0])) == documented(row)
