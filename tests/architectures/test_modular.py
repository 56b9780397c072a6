"""Modular pipelines: the same networks, compressed through the plain class."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import ModularPipeline

import vqcompress
from tests.architectures import tiny_pipelines
from vqcompress.architectures.modular import PLAIN, is_modular, plain_pipeline
from vqcompress.errors import ArchitectureError
from vqcompress.layers import vq_layers

SETTINGS = {"count": 1, "steps": 1, "batch_size": 1, "height": 32, "width": 32}


def modular(folder: Path) -> ModularPipeline:
    """FLUX as a user opens it, from the folder of a plain pipeline."""
    tiny_pipelines.flux().save_pretrained(folder)
    pipeline = ModularPipeline.from_pretrained(str(folder))
    pipeline.load_components()
    return pipeline


def test_a_modular_pipeline_is_compressed_and_opens_both_ways(tmp_path: Path) -> None:
    pipeline = modular(tmp_path / "plain")
    assert is_modular(pipeline)
    vqcompress.quantize(pipeline, tmp_path / "packed", method="rtn", bits=4.0, calibration=SETTINGS, prompts=["a cat"])
    packed = pipeline.transformer.state_dict()
    assert vq_layers(pipeline.transformer)
    opened = ModularPipeline.from_pretrained(str(tmp_path / "packed"))
    opened.load_components()
    assert type(opened) is type(pipeline)
    for transformer in (opened.transformer, vqcompress.load(tmp_path / "packed").transformer):
        there = transformer.state_dict()
        assert there.keys() == packed.keys()
        assert all(torch.equal(there[key], packed[key]) for key in packed)
    for each in (pipeline, opened):
        each.set_progress_bar_config(disable=True)
    call = {"prompt": "a cat", "num_inference_steps": 1, "height": 32, "width": 32, "output": "images"}
    one, other = (
        each(**call, generator=torch.Generator().manual_seed(0), output_type="pt") for each in (pipeline, opened)
    )
    torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-3, atol=1e-3)


def test_components_that_are_not_loaded_are_named() -> None:
    with pytest.raises(ArchitectureError, match=r"FluxModularPipeline has no .*transformer.*load_components\(\)"):
        plain_pipeline(diffusers.FluxModularPipeline())


def test_classes_without_a_plain_one_are_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"Flux3ModularPipeline.*no plain class"):
        plain_pipeline(diffusers.Flux3ModularPipeline())


def test_plain_pipelines_stay_as_they_are() -> None:
    pipeline = tiny_pipelines.flux()
    assert plain_pipeline(pipeline) is pipeline


def test_named_plain_classes_are_in_diffusers() -> None:
    for name, plain in PLAIN.items():
        assert hasattr(diffusers, name), name
        assert hasattr(diffusers, plain), plain
