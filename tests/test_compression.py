"""End-to-end compression of a tiny random SDXL pipeline: resuming, reusing recordings, refusing what changed."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import vqcompress
from tests.conftest import FEW_LAYERS
from vqcompress import compression
from vqcompress.checkpoint import read_layer_table
from vqcompress.errors import ArchitectureError, CheckpointError, VQCompressError
from vqcompress.progress import Progress
from vqcompress.sampling_config import SamplingConfig

CALIBRATION = {"count": 2, "steps": 2, "height": 16, "width": 16, "batch_size": 2}
RECIPE: dict[str, Any] = {
    "method": "trellis",
    "bits": 4.0,
    "settings": {"state_bits": 8},
    "calibration": CALIBRATION,
    "ignore": FEW_LAYERS,
}


@pytest.fixture(scope="module")
def finished(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vqcompress.quantize(str(tiny_sdxl), tmp_path_factory.mktemp("finished") / "out", **RECIPE)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()


class PowerCut(BaseException):
    """Not an Exception, so nothing on the way may swallow it."""


def stopping_at(wanted: str, after: int = 1) -> Progress:
    """A progress callback that ends the run in the ``after``-th step of the stage whose name starts so."""

    def progress(stage: str, done: int, total: int, detail: str) -> None:
        if stage.startswith(wanted) and done == after:
            raise PowerCut

    return progress


def without_recording(stage: str, done: int, total: int, detail: str) -> None:
    """A progress callback for a run that finds its moments on disk."""
    assert not stage.startswith("calibrate"), "recorded what was on disk"


@pytest.mark.parametrize("after", [1, 5])
def test_a_run_that_stops_goes_on_to_the_same_bytes(
    tiny_sdxl: Path, finished: Path, tmp_path: Path, after: int
) -> None:
    with pytest.raises(PowerCut):
        vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", progress=stopping_at("encode", after), **RECIPE)
    assert not (tmp_path / "out").exists()
    encoded = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial" / "unet.layers").iterdir()}
    assert len(encoded) >= after
    found: list[bool] = []

    def progress(stage: str, done: int, total: int, detail: str) -> None:
        without_recording(stage, done, total, detail)
        if stage.startswith("encode") and done == total:
            found.extend(path.stat().st_mtime_ns == stamp for path, stamp in encoded.items())

    folder = vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", progress=progress, **RECIPE)
    assert len(found) == len(encoded)
    assert all(found), "encoded what was on disk"
    assert weights(folder) == weights(finished)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_kept_recordings_serve_other_methods_with_the_same_result(
    tiny_sdxl: Path, finished: Path, tmp_path: Path
) -> None:
    kept = {"calibration_folder": tmp_path / "kept"}
    vqcompress.quantize(str(tiny_sdxl), tmp_path / "a", **kept, **{**RECIPE, "method": "gptq", "settings": {}})
    folder = vqcompress.quantize(str(tiny_sdxl), tmp_path / "b", progress=without_recording, **kept, **RECIPE)
    assert weights(folder) == weights(finished)


def test_images_before_saving_and_after_loading_are_the_same(tiny_sdxl: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny_sdxl, use_safetensors=True)
    architecture = compression.architecture_of(pipeline)
    draw = {"seeds": [3], "sampling": SamplingConfig(2, height=16, width=16), "output_type": "pt"}
    dense = architecture.sample(pipeline, ["a cat"], **draw)
    folder = vqcompress.quantize(pipeline, tmp_path / "out", **RECIPE)
    before = architecture.sample(pipeline, ["a cat"], **draw)
    loaded = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    assert torch.equal(architecture.sample(loaded, ["a cat"], **draw), before)
    assert not torch.equal(dense, before)


def test_bits_are_a_budget_for_all_that_is_stored(finished: Path) -> None:
    found = vqcompress.inspect(finished)
    assert 3.5 < found["bits_per_weight"] <= 4.0
    assert len({round(row["bits_per_weight"], 1) for row in found["components"]["unet"]["layers"]}) > 1


def test_shared_codebooks_are_in_the_budget(tiny_sdxl: Path, tmp_path: Path) -> None:
    settings = {
        "dimension": 8,
        "code_bits": 8,
        "codebooks": 6,
        "column_scales": False,
        "beam": 1,
        "rounds": 2,
        "coordinate_descent": 0,
    }
    recipe = {**RECIPE, "method": "additive", "settings": settings}
    found = vqcompress.inspect(vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", **recipe))
    layers = found["components"]["unet"]["layers"]
    share = 16 * 6 * 256 * 8 / sum(math.prod(row["shape"]) for row in layers if row["format"] != "dense")
    alone = sum(row["bits_per_weight"] * math.prod(row["shape"]) for row in layers) / sum(
        math.prod(row["shape"]) for row in layers
    )
    assert share > 0.05
    assert 3.5 < alone + share <= 4.0
    assert found["bits_per_weight"] <= 4.0


def test_every_matrix_is_packed_or_listed_with_the_reason(tiny_sdxl: Path, finished: Path) -> None:
    unet = DiffusionPipeline.from_pretrained(tiny_sdxl, use_safetensors=True).unet
    matrices = {name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)}
    config = json.loads((finished / "unet" / "config.json").read_text())["quantization_config"]
    listed = [*config["layers"], *config.get("dense", {}), *config["kept"]]
    assert sorted(listed) == sorted(matrices)
    assert all(config["kept"].values())


def test_the_table_of_layers_says_what_became_of_each(tiny_sdxl: Path, finished: Path) -> None:
    unet = DiffusionPipeline.from_pretrained(tiny_sdxl, use_safetensors=True).unet
    packed = vqcompress.load(finished).unet
    records = read_layer_table(finished)
    rows = {row["name"]: row for row in vqcompress.inspect(finished)["layers"]}
    assert sorted(record.layer for record in records) == sorted(rows)
    for record in records:
        assert record.bits == pytest.approx(rows[record.layer]["bits_per_weight"])
        assert record.format == rows[record.layer]["format"]
        layer = packed.get_submodule(record.layer)
        decoded = layer.weight if record.format == "dense" else layer.dense_weight()
        error = unet.get_submodule(record.layer).weight - decoded
        assert (record.error > 0) == bool(error.abs().max() > 0)
        assert record.importance is not None
        assert record.rows is not None


def plant(file: Path, content: dict[str, float]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content) + "\n")


def test_a_small_layer_that_decides_the_output_stays_dense(tiny_sdxl: Path, tmp_path: Path) -> None:
    recipe = {**RECIPE, "ignore": {r"^(?!down_blocks|mid_block)": "not in this test"}}
    with pytest.raises(PowerCut):
        vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", progress=stopping_at("importance"), **recipe)
    groups = [json.loads(path.read_text()) for path in (tmp_path / "out.partial" / "unet.moments.layers").iterdir()]
    importance = {layer: 1e-3 for group in groups for layer in group["layers"]} | {"down_blocks.0.resnets.0.conv1": 1e9}
    plant(tmp_path / "out.partial" / "unet.importance" / "all.json", importance)
    for prompt in range(8):
        plant(tmp_path / "out.partial" / "unet.trajectories" / f"{prompt}.json", {})
    # Measured, this allocation would not be worth what the planted importance says.
    for name, distance in (("allocated", -20.0), ("the same bits in every layer", 0.0)):
        plant(tmp_path / "out.partial" / "unet.allocations" / f"{name}.json", {"distance": distance, "error": 0.0})
    folder = vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", **recipe)
    found = vqcompress.inspect(folder)
    dense = [row for row in found["layers"] if row["format"] == "dense"]
    assert found["bits_per_weight"] <= 4.0
    before, after = (DiffusionPipeline.from_pretrained(f, use_safetensors=True).unet for f in (tiny_sdxl, folder))
    name = min(row["name"] for row in dense)
    assert name == "down_blocks.0.resnets.0.conv1"
    assert torch.equal(before.get_submodule(name).weight, after.get_submodule(name).weight)
    after.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert name in config["dense"]
    assert "conv_in" in config["kept"]


def test_text_encoders_can_be_compressed_too(tiny_sdxl: Path, tmp_path: Path) -> None:
    folder = vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", components=["text_encoder", "unet"], **RECIPE)
    assert set(vqcompress.inspect(folder)["components"]) == {"text_encoder", "unet"}
    assert vqcompress.verify(folder) == []


def test_an_existing_folder_is_kept(tiny_sdxl: Path, finished: Path) -> None:
    before = weights(finished)
    with pytest.raises(CheckpointError, match="--overwrite"):
        vqcompress.quantize(str(tiny_sdxl), finished, **RECIPE)
    assert weights(finished) == before


def test_a_compressed_pipeline_is_not_compressed_again(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(VQCompressError, match="already"):
        vqcompress.quantize(str(finished), tmp_path / "twice", **RECIPE)


def test_keep_patterns_of_the_recipe_replace_the_architectures(tiny_sdxl: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="ignore"):
        vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", **{**RECIPE, "ignore": {".*": "a test"}})
    assert not list(tmp_path.iterdir())


def test_dense_parts_of_a_16_bit_model_stay_16_bit(tiny_sdxl: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    DiffusionPipeline.from_pretrained(tiny_sdxl, use_safetensors=True, torch_dtype=torch.float16).save_pretrained(half)
    folder = vqcompress.quantize(str(half), tmp_path / "out", **{**RECIPE, "method": "rtn", "settings": {}})
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (folder / vae).stat().st_size == (half / vae).stat().st_size
    loaded = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32)
    assert loaded.unet.conv_in.weight.dtype == torch.float32
