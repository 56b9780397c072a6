"""Whole runs over layers of zeros, layers that no call reaches, and weights that no code fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import vqcompress
from tests.architectures import tiny_pipelines as tiny
from tests.conftest import FEW_LAYERS
from vqcompress.checkpoint import read_layer_table
from vqcompress.errors import RecipeError
from vqcompress.methods import METHODS

CALIBRATION = {"count": 2, "steps": 1, "height": 16, "width": 16, "batch_size": 2}
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
QUERY, KEY, VALUE = (f"{ATTENTION}.{part}" for part in ("to_q", "to_k", "to_v"))


def pipeline_with(scales: dict[str, float], folder: Path) -> str:
    torch.manual_seed(0)
    pipeline = tiny.TINY["sdxl"]()
    for layer, scale in scales.items():
        pipeline.unet.get_submodule(layer).weight.data.mul_(scale)
    pipeline.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def with_zeros(tmp_path_factory) -> str:
    return pipeline_with({QUERY: 0.0, VALUE: 0.0}, tmp_path_factory.mktemp("zeros") / "source")


@pytest.fixture(scope="module")
def with_faint(tmp_path_factory) -> str:
    return pipeline_with({KEY: 1e-9}, tmp_path_factory.mktemp("faint") / "source")


def ignoring_all_but(*layers: str) -> dict[str, str]:
    names = "|".join(layer.replace(".", "\\.") for layer in layers)
    return {f"^(?!(?:{names})$)": "not looked at here"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", ["layer", "model"])
def test_a_layer_of_zeros_stays_zero(with_zeros, tmp_path, method, budget):
    lines: list[str] = []
    folder = vqcompress.quantize(
        with_zeros,
        tmp_path / "out",
        method=method,
        bits=3,
        budget=budget,
        calibration=CALIBRATION,
        ignore=ignoring_all_but(QUERY, KEY, VALUE),
        progress=lambda stage, done, total, detail: lines.append(detail),
    )
    assert not any("nan" in line.lower() for line in lines)
    errors = {record.layer: record.error for record in read_layer_table(folder)}
    assert errors[QUERY] == errors[VALUE] == 0.0 < errors[KEY] < 0.2
    unet = vqcompress.load(folder).unet
    assert not unet.get_submodule(QUERY).dense_weight().any()
    assert unet.get_submodule(KEY).dense_weight().any()


@pytest.mark.parametrize("order", ["parallel", "sequential"])
def test_a_weight_that_no_code_fits_stays_dense_with_a_line(with_faint, tmp_path, order):
    lines: list[str] = []
    recipe: dict[str, Any] = {"bits": 3.0, "settings": {"state_bits": 8}, "ignore": ignoring_all_but(QUERY, KEY, VALUE)}
    folder = vqcompress.quantize(
        with_faint,
        tmp_path / "out",
        calibration=CALIBRATION | {"order": order},
        progress=lambda stage, done, total, detail: lines.append(detail),
        **recipe,
    )
    assert any(line.startswith(f"{KEY}: stays dense: weights of") for line in lines)
    formats = {record.layer: record.format for record in read_layer_table(folder)}
    assert formats == {QUERY: "trellis", KEY: "dense", VALUE: "trellis"}
    assert {row["name"]: row["format"] for row in vqcompress.inspect(folder)["layers"]} == formats
    original = DiffusionPipeline.from_pretrained(with_faint).unet.get_submodule(KEY).weight
    assert torch.equal(vqcompress.load(folder).unet.get_submodule(KEY).weight, original)
    assert original.any()


def test_a_run_that_stopped_goes_on_past_a_weight_that_no_code_fits(with_faint, tmp_path):
    class PowerCut(BaseException):
        pass

    def stop(stage: str, done: int, total: int, detail: str) -> None:
        if "stays dense" in detail:
            raise PowerCut

    recipe = {"bits": 3.0, "calibration": CALIBRATION, "ignore": ignoring_all_but(QUERY, KEY, VALUE)}
    with pytest.raises(PowerCut):
        vqcompress.quantize(with_faint, tmp_path / "out", progress=stop, **recipe)
    folder = vqcompress.quantize(with_faint, tmp_path / "out", **recipe)
    assert [record.format for record in read_layer_table(folder) if record.layer == KEY] == ["dense"]


def test_a_component_without_a_weight_that_fits_is_refused(with_faint, tmp_path):
    with pytest.raises(RecipeError, match=r"no layer of unet can be quantized: weights of .* too small"):
        vqcompress.quantize(
            with_faint, tmp_path / "out", bits=3.0, calibration=CALIBRATION, ignore=ignoring_all_but(KEY)
        )
    assert not (tmp_path / "out").exists()


def test_codebooks_of_their_own_leave_small_layers_dense_or_scalar(with_zeros, tmp_path):
    """Within the bits, a layer of 1024 weights has no room for codebooks."""
    folder = vqcompress.quantize(
        with_zeros,
        tmp_path / "out",
        method="additive",
        bits=3.0,
        budget="layer",
        shared_codebooks=False,
        ignore=FEW_LAYERS,
        calibration=CALIBRATION,
    )
    found = vqcompress.inspect(folder)
    packed = [row for row in found["layers"] if row["format"] != "dense"]
    assert packed
    assert all(row["bits_per_weight"] <= 3.0 for row in packed)
    assert vqcompress.verify(folder) is not None
