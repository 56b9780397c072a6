"""One file in the original layout: diffusers reads it back, bit for bit, and so it can be compressed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import save_file

from tests.architectures import tiny_pipelines as _tiny
from vqcompress.architectures import open_pipeline, single_file
from vqcompress.architectures.file_header import FileHeader
from vqcompress.bundling import read_bundle
from vqcompress.checkpoint import dequantize, inspect, save_pipeline
from vqcompress.checkpoint.ldm_checkpoint import UNetNames, ldm_tensors
from vqcompress.cli.main import main
from vqcompress.errors import CheckpointError, RecipeError, UnsupportedError
from vqcompress.layers import make_dense, vq_layers

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


def same(one: Any, two: Any) -> None:
    """Assert that all networks of two dense pipelines have the same weights."""
    for name in (name for name in NETWORKS if hasattr(one, name)):
        a, b = getattr(one, name).state_dict(), getattr(two, name).state_dict()
        assert a.keys() == b.keys(), name
        assert [key for key in a if not torch.equal(a[key], b[key])] == [], name


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense SDXL in a folder: what a single file takes its configuration and tokenizers from."""
    folder = tmp_path_factory.mktemp("dense") / "sdxl"
    _tiny.sdxl(second_width=48).save_pretrained(folder)
    return folder


@pytest.fixture
def sdxl_file(sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as one LDM file, with its configuration where the Hub's would be."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl, use_safetensors=True)
    save_file(ldm_tensors(pipeline), tmp_path / "my_model.safetensors")
    layouts = tuple(layout._replace(config=str(sdxl)) for layout in single_file.LAYOUTS)
    monkeypatch.setattr(single_file, "LAYOUTS", layouts)
    return tmp_path / "my_model.safetensors"


def test_sdxl_goes_out_and_comes_back(sdxl: Path, sdxl_file: Path) -> None:
    dense = StableDiffusionXLPipeline.from_pretrained(sdxl, use_safetensors=True)
    same(StableDiffusionXLPipeline.from_single_file(str(sdxl_file), config=str(sdxl)), dense)
    same(open_pipeline(sdxl_file), dense)


def test_stable_diffusion_1_goes_out_and_comes_back(tmp_path: Path) -> None:
    dense = _tiny.sd15()
    dense.save_pretrained(tmp_path / "sd15")
    save_file(ldm_tensors(dense), tmp_path / "one.safetensors")
    header = FileHeader.read(tmp_path / "one.safetensors")
    assert single_file.layout_of(header).pipeline == "StableDiffusionPipeline"
    same(
        StableDiffusionPipeline.from_single_file(str(tmp_path / "one.safetensors"), config=str(tmp_path / "sd15")),
        dense,
    )


def test_names_are_those_of_published_sdxl_checkpoints() -> None:
    """Taken from the key list of sd_xl_base_1.0.safetensors."""
    names = UNetNames(2, frozenset({"up_blocks.0.attentions.2.x", "up_blocks.1.attentions.2.x"}))
    published = {
        "down_blocks.0.resnets.1.conv1.weight": "input_blocks.2.0.in_layers.2.weight",
        "down_blocks.0.downsamplers.0.conv.bias": "input_blocks.3.0.op.bias",
        "down_blocks.1.resnets.0.conv_shortcut.weight": "input_blocks.4.0.skip_connection.weight",
        "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj.weight": (
            "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight"
        ),
        "mid_block.attentions.0.proj_in.weight": "middle_block.1.proj_in.weight",
        "mid_block.resnets.1.time_emb_proj.bias": "middle_block.2.emb_layers.1.bias",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.2.conv.weight",
        "up_blocks.2.resnets.2.norm2.weight": "output_blocks.8.0.out_layers.0.weight",
        "add_embedding.linear_2.weight": "label_emb.0.2.weight",
        "conv_norm_out.bias": "out.0.bias",
    }
    assert {key: names.of(key) for key in published} == published
    with pytest.raises(UnsupportedError, match=r"down_blocks\.0\.motion"):
        names.of("down_blocks.0.motion_modules.0.weight")


def test_a_compressed_sdxl_as_one_dense_file(sdxl: Path, tmp_path: Path, pack_component) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl, use_safetensors=True)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        pack_component(getattr(pipeline, name))
    folder = save_pipeline(pipeline, tmp_path / "vq", recipe={"model": "tiny"})
    output = tmp_path / "dense.safetensors"
    result = CliRunner().invoke(main, ["dequantize", str(folder), "-o", str(output), "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    for name in ("unet", "text_encoder", "text_encoder_2"):
        make_dense(getattr(pipeline, name))
    same(StableDiffusionXLPipeline.from_single_file(str(output), config=str(sdxl)), pipeline)
    with safe_open(output, "pt") as file:
        keys = set(file.keys())
        assert file.metadata()["pipeline"] == "StableDiffusionXLPipeline"
    assert {
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.decoder.mid.attn_1.q.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
    } <= keys
    assert not [key for key in keys if "vq_shared" in key or key.endswith((".scale", ".rates"))]
    with pytest.raises(CheckpointError, match="--overwrite"):
        dequantize(folder, output)


def test_diffusers_keys_in_one_file(compressed_folder: Path, tmp_path: Path) -> None:
    output = dequantize(compressed_folder, tmp_path / "one.safetensors", layout="diffusers", dtype=torch.float32)
    bundle = read_bundle(output)
    assert bundle is not None
    with safe_open(output, "pt") as file:
        assert "unet.conv_in.weight" in file.keys()  # noqa: SIM118
    opened = open_pipeline(output)
    assert not vq_layers(opened.unet)
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]


def test_layouts_that_cannot_be_are_refused(compressed_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="one file"):
        dequantize(compressed_folder, tmp_path / "folder", layout="ldm")
    with pytest.raises(RecipeError, match="unknown"):
        dequantize(compressed_folder, tmp_path / "one.safetensors", layout="kohya")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="PixArtAlphaPipeline"):
        ldm_tensors(_tiny.pixart())


def test_a_single_file_goes_in_by_path(sdxl_file: Path, tmp_path: Path) -> None:
    """Detected by its keys, compressed, put into one file, opened by diffusers."""
    vq, one = tmp_path / "vq", tmp_path / "vq4.safetensors"
    for arguments in (
        ["quantize", str(sdxl_file), "-o", str(vq), "--method", "rtn", "--bits", "4", "--json"],
        ["bundle", str(vq), "-o", str(one)],
    ):
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert json.loads((vq / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"
    assert inspect(vq)["components"].keys() == {"unet"}
    loaded = StableDiffusionXLPipeline.from_single_file(str(one))
    assert vq_layers(loaded.unet).keys() == {row["name"] for row in inspect(vq)["layers"]}
    refused = CliRunner().invoke(main, ["bundle", str(vq), "-o", str(tmp_path / "vq4.zip")])
    assert refused.exit_code == 2
