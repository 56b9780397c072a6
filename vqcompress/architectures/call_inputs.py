"""What a pipeline's call is given besides the prompts, by its signature: images, videos, frames, true guidance."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from vqcompress.architectures.architecture import OutputType, Pipeline
from vqcompress.architectures.drawn_images import images_of, mask
from vqcompress.sampling_config import ResolvedSampling

EDITING = re.compile(
    r"Img2Img|Image2Image|I2I|ImageToVideo|Image2Video|I2V|VideoToVideo|ImageVariation|VideoDiffusion|Inpaint|Edit|Fill|"
    r"Control(?!NetXS)|Adapter|Pix2Pix|Upscal|SuperRes|Kontext|Animate(?!Diff)|PIA|VideoToWorld|VACE|Vace|Depth2Img|Layered|Refiner|"
    r"VisualCloze|ImageOmni"
)
IMAGES = (
    *("image", "control_image", "condtioning_image", "conditioning_image", "reference_image", "example_image"),
    *("image_reference", "original_image", "init_image"),
)
LISTS_OF_IMAGES = ("images", "controls")
MASKS = ("mask_image", "control_mask")
VIDEOS = ("video", "control_video", "pose_video", "face_video", "conditioning_frames")
WORDS = (
    *("source_subject_category", "target_subject_category", "source_prompt"),
    *("task_prompt", "content_prompt"),
)
FRAMES = ("num_frames", "video_length", "frames", "segment_frame_length")
GIVEN = {*IMAGES, *LISTS_OF_IMAGES, *MASKS, *VIDEOS, *WORDS, "prompt"}
TEMPORAL_FACTORS = (
    *("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "temporal_vae_scale_factor"),
    "vae_temporal_scale_factor",
)
TWO_STEPS = 2  # for which Sana Sprint has a timestep between
RATES = ("frame_rate", "fps")
WITHOUT_LATENTS = {"QwenImageLayeredPipeline"}
"""Classes whose call fails at its end where latents are asked for: they return images."""
ONE_PROMPT = {"DreamLiteMobilePipeline"}
"""Classes whose call takes one prompt, although its signature has lists."""
FEW_FRAMES = 4  # of models that code each frame by itself: layers along time then see different inputs


@dataclass(frozen=True)
class CallInputs:
    """One call of ``pipeline`` for ``prompts``; prompt ``i`` starts from ``generators[i]``."""

    pipeline: Pipeline
    prompts: list[str]
    generators: list[torch.Generator]
    sampling: ResolvedSampling
    output_type: OutputType

    def arguments(self) -> dict[str, Any]:
        """Those of the call, as far as its signature has them."""
        accepted = parameters(self.pipeline.__call__)
        sampling, true_guidance = self.sampling, has_true_guidance(accepted)
        one = takes_one_prompt(self.pipeline)
        offered: dict[str, Any] = {
            "prompt": self.prompts[0] if one else self.prompts,
            "num_inference_steps": math.ceil(sampling.steps / self._strength(accepted)),
            "guidance_scale": None if true_guidance else sampling.guidance,
            "true_cfg_scale": sampling.guidance if true_guidance else None,
            "negative_prompt": self._negative_prompt(true_guidance, one=one),
            "strength": sampling.inputs.strength,
            **dict.fromkeys(RATES, sampling.inputs.rate),
            "height": sampling.height,
            "width": sampling.width,
            "generator": self.generators[0] if one else self.generators,
            "output_type": self._output_type(accepted),
            "clean_caption": False,
            "enable_prompt_rewrite": False,  # by hundreds of tokens of the text encoder, for each prompt
            "use_resolution_binning": False,
            "max_area": sampling.height * sampling.width,
            "_auto_resize": False,
            "control_mode": 0 if _controls_by_mode(self.pipeline) else None,
            "overlap_history": 1 if "video" in accepted else None,
            "image_crf": 0 if find_spec("av") is None else None,
            **dict.fromkeys(FRAMES, self._frames()),
            **dict.fromkeys(WORDS, self.prompts[0]),
        }
        given = {name: value for name, value in offered.items() if name in accepted and value is not None}
        given |= dict.fromkeys(self._unset(given, accepted))
        images = {name: self._drawn(name) for name in drawn_inputs(self.pipeline)}
        if sampling.inputs.image is not None and not images.keys() & set(IMAGES):
            images |= {name: sampling.inputs.image for name in IMAGES if name in accepted}
        return given | images

    def _negative_prompt(self, true_guidance: bool, *, one: bool) -> str | list[str] | None:
        """The user's; empty where guidance needs one."""
        negative = self.sampling.inputs.negative_prompt
        if negative is None and not true_guidance:
            return None
        return negative or "" if one else [negative or ""] * len(self.prompts)

    def _strength(self, accepted: dict[str, inspect.Parameter]) -> float:
        """The share of its steps that a pipeline takes: those that start from an image leave out the first."""
        strength = self.sampling.inputs.strength if "strength" in accepted else 1.0
        if strength is None:
            strength = accepted["strength"].default
        return strength if isinstance(strength, int | float) and 0 < strength < 1 else 1.0

    def _unset(self, given: dict[str, Any], accepted: dict[str, inspect.Parameter]) -> list[str]:
        """Parameters whose default fits the call's own number of steps only."""
        names = ["guidance_schedule"] if "guidance_scale" in given else []
        names += ["intermediate_timesteps"] if given.get("num_inference_steps") != TWO_STEPS else []
        return [name for name in names if name in accepted]

    def _output_type(self, accepted: dict[str, inspect.Parameter]) -> str:
        """The first of several stages has no latents, and returns tensors for the next by default."""
        if self.output_type == "latent" and type(self.pipeline).__name__ in WITHOUT_LATENTS:
            return "pt"
        usual = accepted["output_type"].default if "output_type" in accepted else None
        return "pt" if usual == "pt" else self.output_type

    def _in_context(self, height: int, width: int) -> list[list[Any]]:
        """One example, before and after, and one to do."""
        first, second, third = images_of(self.sampling.images, 3, self.generators[0].initial_seed(), height, width)
        return [[first, second], [third, None]]

    def _frames(self) -> int | None:
        """As few as possible to record and compare; a user's video ("pil") is as long as the pipeline makes it."""
        return self.sampling.inputs.frames if self.output_type == "pil" else fewest_frames(self.pipeline)

    def _drawn(self, name: str) -> Any:
        size, inputs = (self.sampling.height, self.sampling.width), self.sampling.inputs
        if name in MASKS and inputs.mask is not None:
            return inputs.mask
        if name in IMAGES and inputs.image is not None:
            return inputs.image
        if name in MASKS:
            return mask(*size)
        if name == "image" and "task_prompt" in parameters(self.pipeline.__call__):
            return self._in_context(*size)
        seed = self.generators[0].initial_seed() if self.generators else 0
        count = fewest_frames(self.pipeline) if name in VIDEOS else 1
        found = images_of(self.sampling.images, count, seed, *size)
        if has_alpha(self.pipeline):
            found = [image.convert("RGBA") for image in found]
        return found if name in (*VIDEOS, *LISTS_OF_IMAGES) else found[0]


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Those of a function's signature, by name."""
    return dict(inspect.signature(function).parameters)


def _controls_by_mode(pipeline: Pipeline) -> bool:
    """Whether the control network was trained for several kinds of images and has to be told which it gets."""
    config = getattr(getattr(pipeline, "controlnet", None), "config", {})
    return any(config.get(name) for name in ("num_control_type", "num_mode"))


def has_alpha(pipeline: Pipeline) -> bool:
    """Whether the VAE reads images of four channels, as that of layered images does."""
    vae = getattr(pipeline, "vae", None)
    return vae is not None and vae.config.get("input_channels") == 4


def has_true_guidance(accepted: dict[str, inspect.Parameter]) -> bool:
    """Whether the call guides by a second, negative prompt unless told otherwise, beside a scale that is embedded."""
    scale = accepted["true_cfg_scale"].default if "true_cfg_scale" in accepted else None
    return "negative_prompt" in accepted and isinstance(scale, int | float) and scale > 1


def takes_one_prompt(pipeline: Pipeline) -> bool:
    """Whether a call is for one prompt: pipelines that edit take one, and not all of them a list of one."""
    prompt = parameters(pipeline.__call__).get("prompt")
    single = prompt is not None and prompt.annotation in ("str", str, str | None)
    return single or type(pipeline).__name__ in ONE_PROMPT or bool(drawn_inputs(pipeline))


def drawn_inputs(pipeline: Pipeline) -> list[str]:
    """Parameters of the call for images, masks and videos that are to be given.

    Signatures often give such an input the default None, so the class name is looked at too. Of an image and a video
    that are both optional, a call takes one.
    """
    return drawn_inputs_of(type(pipeline))


def drawn_inputs_of(kind: type) -> list[str]:
    """`drawn_inputs` of a pipeline's class."""
    call: Callable[..., Any] = kind.__call__
    accepted, edits = parameters(call), EDITING.search(kind.__name__)
    names = [name for name in (*IMAGES, *LISTS_OF_IMAGES, *MASKS, *VIDEOS) if name in accepted]
    needed = [name for name in names if edits or accepted[name].default is inspect.Parameter.empty]
    either = {"image", "video"} <= {name for name in needed if accepted[name].default is None}
    return [name for name in needed if name != "image" or not either]


def missing_inputs(pipeline: Pipeline) -> list[str]:
    """Parameters without a default that nothing here can give a value."""
    required = [
        name
        for name, parameter in parameters(pipeline.__call__).items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    return [name for name in required if name not in GIVEN]


def fewest_frames(pipeline: Pipeline) -> int:
    """Frames of the shortest video with two latent frames; 4 where each frame is coded by itself."""
    factors = (getattr(pipeline, name, None) for name in TEMPORAL_FACTORS)
    factor = next((int(found) for found in factors if found), 1)
    return factor + 1 if factor > 1 else FEW_FRAMES
