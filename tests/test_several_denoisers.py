"""A pipeline with two denoisers: both are quantized, from one budget, and come back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import vqcompress
from tests.architectures.donors import components
from vqcompress.checkpoint import inspect
from vqcompress.errors import RecipeError
from vqcompress.quantizers.bit_allocation import LayerCost
from vqcompress.recipe import Recipe
from vqcompress.stages.budget import candidates_for, part_of

BITS = 3.0
CALIBRATION = {"count": 1, "steps": 4, "batch_size": 1, "height": 32, "width": 32}


def wan():
    from diffusers import WanPipeline

    parts = components("wan")
    pipeline = WanPipeline(**{name: parts[name] for name in WanPipeline(**parts).components}, boundary_ratio=0.9)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def bits_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Component -> (bits, weights) of its packed layers."""
    found: dict[str, tuple[int, int]] = {}
    for layer in inspect(folder)["layers"]:
        bits, weights = found.get(layer["component"], (0, 0))
        found[layer["component"]] = bits + 8 * layer["bytes"], weights + math.prod(layer["shape"])
    return found


def test_one_budget_for_both(tmp_path: Path) -> None:
    vqcompress.quantize(wan(), tmp_path / "out", method="kmeans", bits=BITS, calibration=CALIBRATION)
    found = bits_of(tmp_path / "out")
    assert found.keys() == {"transformer", "transformer_2"}
    total = sum(bits for bits, _ in found.values()) / sum(weights for _, weights in found.values())
    assert total == pytest.approx(BITS, rel=0.03)


def test_the_denoiser_whose_errors_cost_more_gets_more() -> None:
    costs = {
        f"{part}/layer": LayerCost(64, torch.ones(64), torch.ones(64), importance)
        for part, importance in (("first", 1.0), ("second", 4.0))
    }
    allocated, *_, equal = candidates_for(Recipe(model="", bits=BITS), costs, 2)
    bits = [part_of(allocated, part).bits["layer"] for part in ("first", "second")]
    # Reverse water-filling: four times the cost is one bit more (Cover and Thomas, 10.3.3), half above, half below.
    assert bits == pytest.approx([2.5, 3.5], abs=0.05)
    assert part_of(equal, "first").bits == part_of(equal, "second").bits


def test_fine_tuning_is_of_one(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="trains one denoiser, transformer, and this run quantizes transformer, trans"
    ):
        vqcompress.quantize(wan(), tmp_path / "out", finetune="blocks", calibration=CALIBRATION)
    assert list(tmp_path.iterdir()) == []
