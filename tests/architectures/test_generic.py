"""Pipelines that no family knows: found by their signature, called with what they accept."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel

from tests.architectures import donors
from tests.architectures.tiny_pipelines import sd15
from vqcompress.architectures import architecture_of
from vqcompress.architectures.generic import GenericArchitecture
from vqcompress.errors import ArchitectureError
from vqcompress.sampling_config import ResolvedSampling, SamplingConfig


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
    for component in (part for part in family.components if "text" in part):
        assert any(plan.reason is None for plan in family.layers(pipeline, component))
        family.encode(pipeline, ["a"], guidance=5.0)


def test_editing_is_given_images(sdxl: DiffusionPipeline) -> None:
    parts = {**sdxl.components, "image_encoder": None, "feature_extractor": None}
    editing = StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
    family = architecture_of(editing)
    options = {"seeds": [1, 2], "sampling": SamplingConfig(2, height=16, width=16), "output_type": "latent"}
    both = family.sample(editing, ["a", "b"], **options)
    assert both.shape == (2, 4, 8, 8)
    assert not torch.equal(both[0], both[1])


def test_pooled_image_embeddings_stay_where_there_is_no_call_to_follow() -> None:
    unet = donors.components("kandinsky22")["unet"]
    family = GenericArchitecture("UNet", "unet", ("unet",), ResolvedSampling(2, 1.0, 16, 16))
    plans = {plan.name: plan for plan in family.layers(SimpleNamespace(unet=unet), "unet")}
    assert plans["encoder_hid_proj.image_embeds"].reason is not None
    assert plans["mid_block.attentions.0.to_q"].reason is None


def test_inputs_that_another_pipeline_makes_are_named() -> None:
    class Decoder(DiffusionPipeline):
        def __init__(self, unet: UNet2DConditionModel) -> None:
            super().__init__()
            self.register_modules(unet=unet)

        def __call__(self, prompt: str, image_embeds: torch.Tensor) -> None: ...

    with pytest.raises(ArchitectureError, match="its call needs image_embeds, which another pipeline"):
        architecture_of(Decoder(sd15().unet))
    with pytest.raises(ArchitectureError, match="has no denoiser"):
        architecture_of(Decoder(None))
