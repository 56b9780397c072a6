"""Text encoders and autoencoders beside denoisers: calibrated, quantized, reloaded bit for bit, drawn with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    Flux2Pipeline,
    HunyuanVideoPipeline,
    QwenImagePipeline,
    SanaPipeline,
)

import vqcompress
from tests.architectures import every_pipeline, other_pipelines, tiny_pipelines
from vqcompress.architectures import architecture_of
from vqcompress.checkpoint import read_layer_table
from vqcompress.checkpoint.reopening import check_reopens
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import ArchitectureError, CheckpointError
from vqcompress.layers import vq_layers
from vqcompress.sampling_config import SamplingConfig

RECIPE: dict[str, Any] = {"method": "gptq", "bits": 4.0, "budget": "layer"}
CASES: dict[str, tuple[Callable[[], DiffusionPipeline], tuple[str, ...], int]] = {
    "CLIP": (tiny_pipelines.sd15, ("text_encoder", "vae"), 16),
    "T5": (tiny_pipelines.flux, ("text_encoder_2",), 16),
    "Gemma": (tiny_pipelines.lumina, ("text_encoder",), 16),
    "umT5": (other_pipelines.wan, ("text_encoder",), 32),
    "Gemma 2": (lambda: every_pipeline.build(SanaPipeline), ("text_encoder",), 32),
    "Qwen2.5-VL": (lambda: every_pipeline.build(QwenImagePipeline), ("text_encoder",), 32),
    "Mistral": (lambda: every_pipeline.build(Flux2Pipeline), ("text_encoder",), 32),
    "Llama": (lambda: every_pipeline.build(HunyuanVideoPipeline), ("text_encoder",), 32),
}


@pytest.mark.parametrize("name", CASES)
def test_quantized_reloaded_and_drawn(name: str, tmp_path: Path) -> None:
    make, components, side = CASES[name]
    pipeline = make()
    before = {name: dict(getattr(pipeline, name).state_dict()) for name in components}
    calibration = {"count": 1, "steps": 2, "height": side, "width": side, "batch_size": 1}
    folder = vqcompress.quantize(
        pipeline, tmp_path / "out", components=list(components), calibration=calibration, **RECIPE
    )
    opened = DiffusionPipeline.from_pretrained(folder)
    for component in components:
        packed, written = (vq_layers(getattr(part, component)) for part in (opened, pipeline))
        assert packed
        assert packed.keys() == written.keys()
        one, other = (getattr(part, component).state_dict() for part in (opened, pipeline))
        assert one.keys() == other.keys()
        assert all(one[key].equal(other[key]) for key in one)
        for layer in packed:
            assert not packed[layer].dense_weight().equal(before[component][f"{layer}.weight"])
    rows = {(row.component, row.layer): row.rows for row in read_layer_table(folder)}
    assert {component for component, _ in rows} == set(components)
    assert all(rows.values()), "calibration reached every layer, those of both halves of an autoencoder too"
    options: dict[str, Any] = {"seeds": [3], "sampling": SamplingConfig(2, height=side, width=side)}
    images = [architecture_of(part).sample(part, ["a"], output_type="latent", **options) for part in (pipeline, opened)]
    torch.testing.assert_close(images[0], images[1], rtol=1e-3, atol=1e-4)


def test_an_autoencoder_of_videos_without_a_layer_that_a_code_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"vae has no layer to quantize.*WanCausalConv3d is neither"):
        vqcompress.quantize(other_pipelines.wan(), tmp_path / "out", components=["vae"], **RECIPE)
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_autoencoder_came_back_differently_is_refused(tmp_path: Path) -> None:
    pipeline = tiny_pipelines.sd15()
    calibration = {"count": 1, "steps": 2, "height": 16, "width": 16}
    folder = vqcompress.quantize(pipeline, tmp_path / "out", components=["vae"], calibration=calibration, **RECIPE)
    run = SamplingRun(pipeline, architecture_of(pipeline), ("a",), sampling=SamplingConfig(2, height=16, width=16))
    check_reopens(run, folder, ("vae",))
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.mul_(1.1)
    check_reopens(run, folder)
    with pytest.raises(CheckpointError, match="image that vae decodes"):
        check_reopens(run, folder, ("vae",))


def test_an_autoencoder_of_convolutions_in_time_says_why_nothing_is_quantized(tmp_path: Path) -> None:
    calibration = {"count": 1, "steps": 1, "height": 32, "width": 32}
    with pytest.raises(ArchitectureError, match=r"vae has no layer to quantize.*WanCausalConv3d is neither"):
        vqcompress.quantize(
            other_pipelines.wan(), tmp_path / "out", components=["vae"], calibration=calibration, **RECIPE
        )
