"""Pipelines around the networks of vqcompress.models: planned, sampled, recorded, reopened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from vqcompress.architectures import architecture_of, open_pipeline
from vqcompress.errors import ArchitectureError
from vqcompress.models.class_pipeline import ClassConditionalPipeline
from vqcompress.models.diffit_image import DiffiTImage
from vqcompress.sampling_config import SamplingConfig

Own = Callable[[str], DiffusionPipeline]


@pytest.fixture(params=["dit_official", "dit_moe", "next_dit", "flag_dit", "pt_dit"])
def pipeline(request: pytest.FixtureRequest, own: Own) -> DiffusionPipeline:
    return own(request.param)


def sample(
    pipeline: DiffusionPipeline, which: slice = slice(None), guidance: float | None = None, **options
) -> torch.Tensor:
    family = architecture_of(pipeline)
    prompts = ["7", "rooster"] if family.prompt_set == "imagenet" else ["a red cat", "b"]
    given = {"seeds": [3, 4][which], "output_type": "latent"} | options
    return family.sample(pipeline, prompts[which], sampling=SamplingConfig(2, guidance, 16, 16), **given)


def test_every_matrix_is_planned(pipeline: DiffusionPipeline) -> None:
    plans = architecture_of(pipeline).layers(pipeline, "transformer")
    matrices = {name.removesuffix(".weight") for name, p in pipeline.transformer.named_parameters() if p.ndim > 1}
    assert {plan.name for plan in plans} == matrices
    quantized = {plan.name for plan in plans if plan.reason is None}
    assert all(name.split(".")[1].isdecimal() or name.startswith("caption_") for name in quantized), quantized
    assert len(quantized) > 8


def test_an_image_does_not_depend_on_its_batch(pipeline: DiffusionPipeline) -> None:
    both = sample(pipeline)
    assert torch.isfinite(both).all()
    torch.testing.assert_close(both[1:], sample(pipeline, slice(1, 2)), rtol=1e-3, atol=1e-3 * float(both.abs().max()))
    assert not torch.equal(sample(pipeline, guidance=1.0), both)
    assert sample(pipeline, output_type="pt").shape == (2, 3, 16, 16)


def test_folder_opens_to_the_same_images(pipeline: DiffusionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    opened = open_pipeline(tmp_path / "model")
    assert architecture_of(opened) == architecture_of(pipeline)
    assert torch.equal(sample(opened), sample(pipeline))


def test_gates_stay_in_float(own: Own) -> None:
    pipeline = own("dit_moe")
    plans = {plan.name: plan.reason for plan in architecture_of(pipeline).layers(pipeline, "transformer")}
    assert all(plans[f"blocks.{index}.moe.gate"] for index in range(2))


def test_unconditional_image_space() -> None:
    network = DiffiTImage(image_size=16, widths=(32, 32), blocks=(1, 1), window=4)
    pipeline = ClassConditionalPipeline.with_defaults(network.eval())
    family = architecture_of(pipeline)
    assert (family.defaults.height, family.name) == (16, "DiffiTImage")
    assert family.sample(pipeline, ["anything"], seeds=[0], sampling=SamplingConfig(2), output_type="pt").shape == (
        1,
        3,
        16,
        16,
    )
    with pytest.raises(ArchitectureError, match="16x16 images only"):
        family.sample(pipeline, ["anything"], seeds=[0], sampling=SamplingConfig(height=32))


def test_transposed_convolutions_are_quantized_too(own: Own) -> None:
    pipeline = own("diffit_image")
    plans = {plan.name: plan.reason for plan in architecture_of(pipeline).layers(pipeline, "transformer")}
    assert plans["up.0.patches"] is plans["down.0"] is plans["merge.0"] is None


def test_a_layer_that_all_blocks_share_is_planned_once(own: Own) -> None:
    pipeline = own("pt_dit")
    names = [plan.name for plan in architecture_of(pipeline).layers(pipeline, "transformer")]
    assert names.count("adaln_single.linear") == 1
    assert len(names) == len(set(names))
