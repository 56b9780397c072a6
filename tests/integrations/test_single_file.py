"""``from_single_file``, of pipelines and of components, for a compressed pipeline in one file."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import single_file as upstream

import vqcompress
from vqcompress.architectures import open_pipeline
from vqcompress.bundling import write_bundle
from vqcompress.errors import CheckpointError, UnsupportedError
from vqcompress.integrations.single_file import attach
from vqcompress.layers import vq_layers


@pytest.fixture(scope="module")
def bundle(compressed_folder, tmp_path_factory) -> Path:
    """A compressed Stable Diffusion, UNet and text encoder packed, as one file."""
    return write_bundle(compressed_folder, tmp_path_factory.mktemp("bundle") / "vq3.safetensors")


@pytest.mark.feature("`from_single_file`", "UNet", "text encoder")
def test_a_pipeline_from_one_file(bundle, compressed_pipeline, draw):
    loaded = StableDiffusionPipeline.from_single_file(str(bundle))
    loaded.set_progress_bar_config(disable=True)
    assert vq_layers(loaded.text_encoder)
    assert torch.equal(draw(loaded), draw(compressed_pipeline))


@pytest.mark.feature("`from_single_file`", "UNet")
def test_a_component_from_one_file_in_another_dtype(bundle, compressed_folder, run_unet):
    loaded = UNet2DConditionModel.from_single_file(bundle, torch_dtype=torch.bfloat16)
    expected = UNet2DConditionModel.from_pretrained(compressed_folder / "unet", torch_dtype=torch.bfloat16)
    assert torch.equal(run_unet(loaded), run_unet(expected))


@pytest.mark.feature("`from_single_file`", "DiT")
def test_a_transformer_from_one_file(tmp_path, pack_component, make_tiny_pipeline):
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4}
    widths = {"joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 32}
    packed = pack_component(SD3Transformer2DModel(sample_size=8, **sizes, **widths), ("pos_embed.proj", "proj_out"))
    packed.save_pretrained(tmp_path / "all" / "transformer")
    (tmp_path / "all" / "model_index.json").write_text('{"transformer": ["diffusers", "SD3Transformer2DModel"]}')
    loaded = SD3Transformer2DModel.from_single_file(write_bundle(tmp_path / "all", tmp_path / "one.safetensors"))
    for name, layer in vq_layers(packed).items():
        assert torch.equal(vq_layers(loaded)[name].dense_weight(), layer.dense_weight()), name


def test_our_own_doors_open_it_too(bundle, run_unet, compressed_pipeline):
    for opened in (vqcompress.load(bundle), open_pipeline(bundle)):
        assert torch.equal(run_unet(opened.unet), run_unet(compressed_pipeline.unet))


def test_the_temporary_folder_goes_with_the_model(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    loaded = UNet2DConditionModel.from_single_file(bundle)
    assert list(tmp_path.iterdir())
    del loaded
    import gc

    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_not_in_the_file_is_named(bundle):
    with pytest.raises(CheckpointError, match=r"0 parts that are a SD3Transformer2DModel; it holds .*unet"):
        SD3Transformer2DModel.from_single_file(bundle)


def test_attaching_twice_wraps_once():
    before = vars(upstream.FromSingleFileMixin)["from_single_file"]
    attach(upstream)
    assert vars(upstream.FromSingleFileMixin)["from_single_file"] is before


def test_a_moved_method_is_named():
    with pytest.raises(UnsupportedError, match="FromSingleFileMixin"):
        attach(ModuleType("diffusers.loaders.single_file"))
