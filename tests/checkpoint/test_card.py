"""What the model card says, and that the Hub reads it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from vqcompress.calibration.prompts import load_prompts
from vqcompress.checkpoint import LayerRecord
from vqcompress.checkpoint.card import model_card, prompt_source

PART = {"packed_layers": 2, "bits_per_weight": 3.01, "component_bits_per_weight": 3.2, "bytes": 1234567}
SIZES = {"bytes": 2345678, "bits_per_weight": 3.01, "components": {"unet": PART, "text_encoder": PART}}


def record(component: str, layer: str, error: float) -> LayerRecord:
    return LayerRecord(component, layer, "trellis", 3.0, error, None, 10, 4)


def card(model: str, **recipe: Any) -> ModelCard:
    layers = [record("unet", "a", 0.01), record("unet", "b", 0.03), record("text_encoder", "c", 0.05)]
    text = model_card(
        "out", {"model": model, **recipe}, SIZES, layers, "3 of the 9 prompts of the set `x` (SHA-256 `ab`)"
    )
    return ModelCard(text)


def test_base_recipe_prompts_bits_bytes_scores_and_the_import_line() -> None:
    found = card("sdxl", bits=3.0)
    assert found.data.base_model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert found.data.to_dict()["base_model_relation"] == "quantized"
    assert found.data.library_name == "diffusers"
    for part in (
        "import vqcompress",
        "bits: 3.0",
        "(SHA-256 `ab`)",
        "3.010 bits a weight",
        "2,345,678 bytes",
        "| unet | 2.00% | 3.00% | b |",
        "| text_encoder | 5.00% | 5.00% | c |",
    ):
        assert part in found.text, part


@pytest.mark.parametrize("model", ["shapes", "models/my_model.safetensors", "tests/checkpoint"])
def test_what_is_no_hub_model_is_not_claimed_to_be_one(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert "base_model" not in card(model).data.to_dict()


def test_prompts_are_named_with_their_hash(tmp_path: Path) -> None:
    general = load_prompts("general")
    recipe = {"calibration": {"prompts": "general", "count": 5}}
    source = prompt_source(recipe, SimpleNamespace())
    assert source == f"5 of the {len(general.prompts)} prompts of the set `general` (SHA-256 `{general.sha256}`)"
    (tmp_path / "mine.txt").write_text("a cat\na dog\n")
    found = prompt_source({"calibration": {"prompts": str(tmp_path / "mine.txt")}}, SimpleNamespace())
    assert found is not None
    assert found.startswith("2 of the 2 prompts of the set `mine.txt`")
    assert prompt_source({"calibration": {"prompts": "gone"}}, SimpleNamespace()) == "the prompt set `gone`"
    assert prompt_source({}, SimpleNamespace()) is None
