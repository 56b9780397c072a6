"""Pipelines that no family knows: found by their signature, called with what they accept."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline

from vqcompress.architectures import architecture_of
from vqcompress.errors import ArchitectureError
from vqcompress.sampling_config import SamplingConfig


@pytest.mark.parametrize(("name", "side"), [("wan", 32), ("hunyuan", 16)])
def test_plan_and_sample(other: Callable[[str], DiffusionPipeline], name: str, side: int) -> None:
    pipeline = other(name)
    family = architecture_of(pipeline)
    denoiser = getattr(pipeline, family.denoiser)
    plans = family.layers(pipeline, family.denoiser)
    assert {p.name for p in plans} == {n.removesuffix(".weight") for n, p in denoiser.named_parameters() if p.ndim > 1}
    assert sum(plan.reason is None for plan in plans) > 10
    assert not any("block" not in plan.name for plan in plans if plan.reason is None and "text" not in plan.name)
    options = {"sampling": SamplingConfig(2, height=side, width=side), "output_type": "latent"}
    both = family.sample(pipeline, ["a", "b"], seeds=[1, 2], **options)
    alone = family.sample(pipeline, ["b"], seeds=[2], **options)
    assert torch.isfinite(both).all()
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))
    for component in family.components[1:]:
        assert any(plan.reason is None for plan in family.layers(pipeline, component))
        family.encode(pipeline, ["a"], guidance=5.0)


def test_pipelines_that_prompts_cannot_drive(sdxl: DiffusionPipeline) -> None:
    parts = {**sdxl.components, "image_encoder": None, "feature_extractor": None}
    editing = StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
    with pytest.raises(ArchitectureError, match="StableDiffusionXLImg2ImgPipeline is no text-to-image"):
        architecture_of(editing)
