"""Any other diffusers text-to-image or text-to-video pipeline around a `transformer` or a `unet`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from vqcompress.architectures.architecture import (
    Architecture,
    OutputType,
    Pipeline,
    latent_factor,
    present_text_encoders,
)
from vqcompress.architectures.few_step import few_step_sampling
from vqcompress.architectures.layer_plan import FINAL, LATENT_INPUT, ONE_SAMPLE_PER_TIMESTEP, IgnoreRules
from vqcompress.sampling_config import ResolvedSampling

DENOISERS = ("transformer", "unet")
EDITING = re.compile(
    r"Img2Img|Image2Image|ImageToVideo|Image2Video|VideoToVideo|Inpaint|Edit|Fill|Control|Adapter|Pix2Pix|Upscale"
)


class GenericArchitecture(Architecture):
    """Ignore rules use layer names that diffusers models share. Call arguments follow the pipeline's signature.

    Modulation inside the blocks is quantized (a quarter of FLUX); embedders of time and pooled conditions are not.
    """

    ignore: ClassVar[IgnoreRules] = {
        r"^(pos_embed|patch_embed\w*|patchify_proj|x_embedder|img_in|conv_in|proj_in)(\.|$)": LATENT_INPUT,
        r"(^|[._])(time|timestep|guidance|class|label|pooled|aspect_ratio|resolution)\w*_?(emb\w*|proj\w*)(\.|$)|"
        r"^(time_text_embed|adaln_single|add_embedding)\.": ONE_SAMPLE_PER_TIMESTEP,
        r"^(proj_out\w*|final_layer|norm_out|conv_out)(\.|$)": FINAL,
    }

    @classmethod
    def supports(cls, pipeline: Pipeline) -> bool:
        parameters = _parameters(pipeline.__call__)
        return _denoiser(pipeline) is not None and "prompt" in parameters and not _needs_more(pipeline, parameters)

    @classmethod
    def of(cls, pipeline: Pipeline) -> GenericArchitecture:
        denoiser = _denoiser(pipeline) or ""
        name = type(getattr(pipeline, denoiser)).__name__
        return cls(name, denoiser, (denoiser, *present_text_encoders(pipeline)), _defaults(pipeline, denoiser))

    def run(
        self,
        pipeline: Pipeline,
        prompts: list[str],
        *,
        generators: list[torch.Generator],
        sampling: ResolvedSampling,
        output_type: OutputType,
    ) -> Any:
        offered = {
            "prompt": prompts,
            "num_inference_steps": sampling.steps,
            "guidance_scale": sampling.guidance,
            "height": sampling.height,
            "width": sampling.width,
            "generator": generators,
            "output_type": output_type,
            "clean_caption": False,
            "use_resolution_binning": False,
        }
        accepted = _parameters(pipeline.__call__)
        result = pipeline(**{name: value for name, value in offered.items() if name in accepted})
        return result[0]


def _denoiser(pipeline: Pipeline) -> str | None:
    return next((name for name in DENOISERS if isinstance(getattr(pipeline, name, None), nn.Module)), None)


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def _needs_more(pipeline: Pipeline, parameters: dict[str, inspect.Parameter]) -> bool:
    """Whether the pipeline needs an input other than prompts, such as an image.

    Signatures often give such an input the default None, so the class name is checked too.
    """
    wanted = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    return bool(wanted - {"prompt", "args", "kwargs"}) or bool(EDITING.search(type(pipeline).__name__))


def _defaults(pipeline: Pipeline, denoiser: str) -> ResolvedSampling:
    """The defaults in the pipeline's signature; sizes come from the denoiser if the signature has None."""
    parameters = _parameters(pipeline.__call__)

    def default(name: str, otherwise: Any) -> Any:
        value = parameters[name].default if name in parameters else None
        return otherwise if value is None or value is inspect.Parameter.empty else value

    side = _latent_side(pipeline, getattr(pipeline, denoiser)) * latent_factor(pipeline)
    usual = int(default("num_inference_steps", 50)), float(default("guidance_scale", 1.0))
    return ResolvedSampling(
        *(few_step_sampling(pipeline) or usual),
        int(default("height", side)),
        int(default("width", side)),
    )


def _latent_side(pipeline: Pipeline, denoiser: Any) -> int:
    sample_size = getattr(pipeline, "default_sample_size", None) or denoiser.config.get("sample_size") or 64
    return sample_size if isinstance(sample_size, int) else tuple(sample_size)[-1]
