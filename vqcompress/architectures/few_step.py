"""Models that were distilled to a few steps (LCM, Turbo, Lightning, Hyper, TCD), told by how they are configured."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vqcompress.architectures.architecture import Pipeline

STEPS = 4
CONSISTENCY = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "SCMScheduler")
SAMPLERS = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler")
EMBEDDED_GUIDANCE = 8.0
METADATA_KEYS = ("modelspec.title", "modelspec.tags", "modelspec.architecture", "modelspec.sampler")
DISTILLED = re.compile(r"\b(lcm|tcd|turbo|lightning|hyper-?sd\w*|dmd2?|schnell)\b")


def few_step_sampling(pipeline: Pipeline) -> tuple[int, float] | None:
    """(steps, guidance) of a few-step model, or None for any other.

    Its scheduler is that of a consistency model, or it spaces timesteps from the last one down ("trailing") although
    the network predicts noise and was not trained for a last timestep without signal, the other reason to do so.
    Or it is FLUX without an embedded guidance scale (schnell). Such a model runs without classifier-free guidance; a
    UNet that embeds the guidance scale gets one.
    """
    scheduler = getattr(pipeline, "scheduler", None)
    denoisers = (getattr(pipeline, name, None) for name in ("unet", "transformer"))
    denoiser = next((found for found in denoisers if found is not None), None)
    config = {} if denoiser is None else denoiser.config
    schnell = type(denoiser).__name__ == "FluxTransformer2DModel" and not config.get("guidance_embeds")
    if not (schnell or type(scheduler).__name__ in CONSISTENCY or _trails(scheduler)):
        return None
    return STEPS, EMBEDDED_GUIDANCE if config.get("time_cond_proj_dim") else 0.0


def _trails(scheduler: object | None) -> bool:
    config = getattr(scheduler, "config", {})
    return (
        type(scheduler).__name__ in SAMPLERS
        and config.get("timestep_spacing") == "trailing"
        and config.get("prediction_type") == "epsilon"
        and not config.get("rescale_betas_zero_snr")
    )


def is_few_step(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata of a single file names a way of distillation."""
    said = " ".join(metadata.get(key, "") for key in METADATA_KEYS).lower().replace("_", " ")
    return DISTILLED.search(said) is not None
