"""Stable Diffusion, SDXL, SDXL-Turbo, the embedded `shapes` and `posters`: a `UNet2DConditionModel` and CLIP."""

from __future__ import annotations

import re
from typing import ClassVar

from vqcompress.architectures.architecture import (
    Architecture,
    Pipeline,
    image_size,
    present_text_encoders,
)
from vqcompress.architectures.few_step import STEPS, few_step_sampling
from vqcompress.architectures.layer_plan import FINAL, LATENT_INPUT, ONE_SAMPLE_PER_TIMESTEP, IgnoreRules, LayerPlan
from vqcompress.embedded import EMBEDDED
from vqcompress.sampling_config import ResolvedSampling

TOP_ORDER = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block", "up_blocks", "conv_out")
LAST = 1 << 20
EMBEDDED_UNETS = ("shapes", "posters")


class UNetArchitecture(Architecture):
    """Pipelines called with a text prompt around a `UNet2DConditionModel`."""

    ignore: ClassVar[IgnoreRules] = {
        r"^conv_in$": LATENT_INPUT,
        r"^conv_out$": FINAL,
        r"^(time|add|class)_embedding\.|^time_cond_proj$|\.time_emb_proj$": ONE_SAMPLE_PER_TIMESTEP,
        r"^encoder_hid_proj": "a small projection that all cross-attention reads",
    }

    @classmethod
    def supports(cls, pipeline: Pipeline) -> bool:
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        return isinstance(pipeline, StableDiffusionPipeline | StableDiffusionXLPipeline)

    @classmethod
    def of(cls, pipeline: Pipeline) -> UNetArchitecture:
        name = _name(pipeline)
        return cls(
            name=name,
            denoiser="unet",
            components=("unet", *present_text_encoders(pipeline)),
            defaults=_defaults(name, pipeline),
            prompt_set=EMBEDDED[name].prompt_set if name in EMBEDDED else "general",
        )

    def execution_order(self, plans: list[LayerPlan]) -> list[LayerPlan]:
        return sorted(plans, key=lambda plan: _rank(plan.name))


def _name(pipeline: Pipeline) -> str:
    config = pipeline.unet.config
    if config.addition_embed_type != "text_time":
        return "sd21" if config.cross_attention_dim == 1024 else "sd15"
    if embedded := next((name for name in EMBEDDED_UNETS if EMBEDDED[name].fits(config)), None):
        return embedded
    return "sdxl-turbo" if few_step_sampling(pipeline) else "sdxl"


def _defaults(name: str, pipeline: Pipeline) -> ResolvedSampling:
    height, width = image_size(pipeline, pipeline.unet)
    if model := EMBEDDED.get(name):
        return ResolvedSampling(model.steps, model.guidance, height, width)
    return ResolvedSampling(*(few_step_sampling(pipeline) or usual_sampling(name)), height, width)


def usual_sampling(name: str) -> tuple[int, float]:
    """Steps and guidance scale of a UNet that has this name."""
    return {"sdxl": (50, 5.0), "sdxl-turbo": (STEPS, 0.0)}.get(name, (50, 7.5))


def _rank(name: str) -> tuple[int, int, int, int]:
    """Sort key: part of the U, block, stage inside the block, ResNet before its attention.

    diffusers registers up_blocks before mid_block and attentions before resnets, but runs them in this order.
    """
    top = name.split(".")[0]
    part = TOP_ORDER.index(top) if top in TOP_ORDER else TOP_ORDER.index("down_blocks") - 1
    block = re.match(r"(?:down|up)_blocks\.(\d+)\.", name)
    stage = re.search(r"(?:^|\.)(resnets|attentions|motion_modules)\.(\d+)\.", name)
    return (
        part,
        int(block[1]) if block else 0,
        int(stage[2]) if stage else LAST,
        ("resnets", "attentions", "motion_modules").index(stage[1]) if stage else 0,
    )
