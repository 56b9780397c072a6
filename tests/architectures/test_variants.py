"""Folders whose weights have a variant in their names, as `save_pretrained(variant=…)` writes them, also in shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from tests.architectures import tiny_pipelines
from vqcompress.architectures import open_pipeline
from vqcompress.architectures.folder import variant_of
from vqcompress.errors import ArchitectureError


@pytest.fixture(scope="module")
def original() -> DiffusionPipeline:
    return tiny_pipelines.sd15()


def same(opened: DiffusionPipeline, original: DiffusionPipeline, dtype: torch.dtype) -> None:
    for name, part in original.components.items():
        if isinstance(part, nn.Module):
            expected, found = part.state_dict(), getattr(opened, name).state_dict()
            assert expected.keys() == found.keys()
            rounded = {key: value.to(dtype).to(value.dtype) for key, value in expected.items()}
            assert [key for key in found if not found[key].equal(rounded[key])] == [], name


@pytest.mark.parametrize("shard", ["10GB", "60KB"])
@pytest.mark.parametrize(
    ("variant", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("ema", torch.float32)]
)
def test_one_variant(original, tmp_path: Path, variant: str, dtype: torch.dtype, shard: str) -> None:
    pipeline = tiny_pipelines.sd15().to(dtype)
    pipeline.save_pretrained(tmp_path / "model", variant=variant, max_shard_size=shard)
    assert all(f".{variant}" in path.name for path in (tmp_path / "model").rglob("*.safetensors"))
    assert (len(list((tmp_path / "model" / "unet").glob("*.safetensors"))) > 1) == (shard != "10GB")
    same(open_pipeline(tmp_path / "model"), original, dtype)


def test_files_without_a_variant_come_first(original, tmp_path: Path) -> None:
    tiny_pipelines.sd15().to(torch.bfloat16).save_pretrained(tmp_path / "model", variant="bf16")
    original.save_pretrained(tmp_path / "model")
    same(open_pipeline(tmp_path / "model"), original, torch.float32)


def test_a_variant_of_some_components_only(original, tmp_path: Path) -> None:
    half = tiny_pipelines.sd15().to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half", variant="bf16")
    original.save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "unet")
    shutil.copytree(tmp_path / "half" / "unet", tmp_path / "model" / "unet")
    opened = open_pipeline(tmp_path / "model")
    assert opened.unet.conv_in.weight.equal(half.unet.conv_in.weight.float())
    same_names = original.text_encoder.state_dict()
    assert all(value.equal(same_names[key]) for key, value in opened.text_encoder.state_dict().items())


def test_components_of_different_variants_are_refused(original, tmp_path: Path) -> None:
    original.save_pretrained(tmp_path / "model", variant="fp16")
    for path in (tmp_path / "model" / "vae").glob("*.safetensors"):
        path.rename(path.with_name(path.name.replace(".fp16.", ".bf16.")))
    with pytest.raises(
        ArchitectureError, match=r"unet only as fp16.*vae only as bf16|vae only as bf16.*unet only as fp16"
    ):
        open_pipeline(tmp_path / "model")


def test_older_shard_names(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    (tmp_path / "unet" / "diffusion_pytorch_model-00001-of-00002.fp16.safetensors").touch()
    assert variant_of(tmp_path) == "fp16"
