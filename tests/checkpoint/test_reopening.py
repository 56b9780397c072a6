"""A folder that does not open, or samples otherwise than the pipeline that it was written from, is not published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqcompress.architectures import architecture_of
from vqcompress.checkpoint import save_pipeline
from vqcompress.checkpoint.manifest import write_manifest
from vqcompress.checkpoint.reopening import check_reopens
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import CheckpointError
from vqcompress.sampling_config import SamplingConfig

UNET, ENCODER = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


def saved(pipeline: Any, folder: Path, damage: Callable[[Path], None] = lambda partial: None) -> Path:
    run = SamplingRun(pipeline, architecture_of(pipeline), ("a cat",), sampling=SamplingConfig(2, height=8, width=8))

    def check(partial: Path) -> None:
        damage(partial)
        check_reopens(run, partial)

    return save_pipeline(pipeline, folder, recipe={}, before_publication=check)


def with_another_value(partial: Path, file: str, name: str) -> None:
    """What a bug in saving could do: a sound folder, whose manifest fits, with other weights."""
    tensors = load_file(partial / file)
    key = next(key for key in tensors if key.endswith(name))
    tensors[key] = tensors[key] * 1.5
    save_file(tensors, partial / file, metadata={"format": "pt"})
    write_manifest(partial)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_comes_back_is_published(compressed_pipeline: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    assert saved(compressed_pipeline.to(dtype), tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    ("file", "name", "named"),
    [(UNET, "conv_out.bias", "the output"), (ENCODER, "final_layer_norm.weight", "encoder_hidden_states")],
    ids=["denoiser", "text encoder"],
)
def test_other_weights_are_noticed(compressed_pipeline: Any, tmp_path: Path, file: str, name: str, named: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{named} of the first call of unet differs by .* not published"):
        saved(compressed_pipeline, tmp_path / "out", lambda partial: with_another_value(partial, file, name))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_sound_is_noticed(compressed_pipeline: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not sound"):
        saved(compressed_pipeline, tmp_path / "out", lambda partial: (partial / UNET).write_bytes(b"{}"))
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_a_difference(compressed_pipeline: Any, tmp_path: Path) -> None:
    """NaN compares with nothing: it must not pass for equal."""
    with torch.no_grad():
        compressed_pipeline.unet.conv_out.bias[0] = 1e30
    run = SamplingRun(
        compressed_pipeline,
        architecture_of(compressed_pipeline),
        ("a cat",),
        sampling=SamplingConfig(2, height=8, width=8),
    )
    folder = save_pipeline(compressed_pipeline, tmp_path / "out", recipe={})
    with torch.no_grad():
        compressed_pipeline.unet.conv_out.bias[0] = float("nan")
    with pytest.raises(CheckpointError, match="differs by nan"):
        check_reopens(run, folder)
