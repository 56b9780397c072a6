"""One diffusers pipeline for all class-conditional networks here. The scheduler sets the time convention.

=====================  =============================  ==========================================================
scheduler              networks                       time, estimate, guidance
=====================  =============================  ==========================================================
DDIM, DDPM, …          DiT, MDT, DiffiT, Large-DiT,   t in [0, 1000), noise; three channels, ramped in MDT, DiffiT
                       DiT-MoE S/B
FlowMatchEuler         SiT, Flag-DiT, Next-DiT        t from 0 to 1, data minus noise; three channels
FlowMatchEuler         DiT-MoE XL/G                   t from 1 to 1/steps, noise minus data; all channels
EDMEuler               image-space DiffiT             ln(sigma)/4, preconditioned; all channels
=====================  =============================  ==========================================================
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from vqcompress.errors import ArchitectureError
from vqcompress.models.diffit_image import DiffiTImage
from vqcompress.models.diffit_latent import DiffiTLatent
from vqcompress.models.dit import SiT
from vqcompress.models.flag_dit import FlagDiTLabels
from vqcompress.models.guidance import guided
from vqcompress.models.next_dit import NextDiTLabels

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None
_FLOW = "FlowMatch"
# Flows whose time runs from noise at 0 to data at 1.
_TOWARDS_DATA = (SiT, FlagDiTLabels, NextDiTLabels)
# Side of the latent for networks that were trained on many sizes and have no size in their config: 256 px.
_LATENT_SIDE = 32
_LEARNED = ("learned", "learned_range")


def default_scheduler(transformer: Any) -> Any:
    """Return a diffusers scheduler for the noise or the flow that ``transformer`` was trained on."""
    if isinstance(transformer, DiffiTImage):
        return EDMEulerScheduler()
    # The DiT-MoE releases with this attention layout are rectified flows.
    if isinstance(transformer, _TOWARDS_DATA) or transformer.config.get("use_flash_attn"):
        return FlowMatchEulerDiscreteScheduler()
    return DDIMScheduler(clip_sample=False)


def usual_guidance(transformer: Any) -> float:
    """The papers' scale, or 1 for a network without a null label."""
    config = transformer.config
    if config["num_classes"] is None or config["class_dropout_prob"] == 0:
        return 1.0
    if isinstance(transformer, DiffiTLatent):
        return 4.4 if config["input_size"] <= 32 else 1.49
    return 7.0 if config.get("use_flash_attn") else 4.0


def input_side(transformer: Any) -> int:
    """Side of the network's input, in latents (in pixels for an image-space network)."""
    config = transformer.config
    return config["image_size"] if "image_size" in config else config.get("input_size", _LATENT_SIDE)


class ClassConditionalPipeline(DiffusionPipeline):
    """Generates images from class labels.

    ``transformer`` is a network of `vqcompress.models`. ``vae`` is needed for networks on latents. ``id2label`` maps
    class ids to names; a value can list several synonyms, separated by commas. ``guidance`` is the best scale for the
    weights, if it is not the papers' scale.
    """

    model_cpu_offload_seq: Any = "transformer->vae"
    _optional_components = ["vae"]  # noqa: RUF012 (diffusers defines it as a list)

    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        vae: Any = None,
        id2label: dict[Any, str] | None = None,
        guidance: float | None = None,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(id2label=id2label, guidance=guidance)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @classmethod
    def with_defaults(
        cls,
        transformer: Any,
        vae: Any = None,
        id2label: dict[Any, str] | None = None,
        guidance: float | None = None,
    ) -> Any:
        """Build the pipeline with the scheduler that the network was trained for."""
        return cls(transformer, default_scheduler(transformer), vae, id2label, guidance)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along one side; 1 without a VAE."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def default_sample_size(self) -> int:
        """Side of a latent when no size is given."""
        return input_side(self.transformer)

    @property
    def default_guidance(self) -> float:
        """The pipeline's own scale if set; otherwise the papers' scale, or 1 for a network without a null label."""
        given = self.config["guidance"]
        return usual_guidance(self.transformer) if given is None else given

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None for an unconditional network."""
        return self.transformer.config["num_classes"]

    @property
    def labels(self) -> dict[str, int]:
        """Maps every class name to its id."""
        named = (self.config["id2label"] or {}).items()
        return {word.strip(): int(index) for index, words in named for word in words.split(",")}

    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float | None = None,
        num_inference_steps: int = 50,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate one image per label.

        ``generator``: one for all images, or a list with one per image. ``output_type``: "pil", "np", "pt" (float
        [n, 3, h, w] in 0..1) or "latent" ([n, channels, s, s], unscaled). ``guidance_scale`` of 1 or less runs only
        the conditional half; None means `default_guidance`. Raises ArchitectureError for labels that the network does
        not have.
        """
        guidance = self.default_guidance if guidance_scale is None else guidance_scale
        labels = self._checked(class_labels, guidance)
        with torch.no_grad():
            x = self._denoise(labels, guidance, num_inference_steps, generator)
            images: Any = x if output_type == "latent" else self._images(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _checked(self, class_labels: Sequence[int], guidance: float) -> Tensor:
        classes, labels = self.num_classes, torch.as_tensor(class_labels, device=self._execution_device)
        if classes is not None and not bool(((labels >= 0) & (labels < classes)).all()):
            raise ArchitectureError(f"This network has classes 0 to {classes - 1}; got labels {list(class_labels)}.")
        if classes is not None and guidance > 1 and self.transformer.config["class_dropout_prob"] == 0:
            raise ArchitectureError("This network has no null label, so it cannot be guided; set guidance_scale=1.")
        return labels

    def _denoise(self, labels: Tensor, guidance: float, steps: int, generator: Generators) -> Tensor:
        side, channels = self.default_sample_size, self.transformer.config["in_channels"]
        x = randn_tensor(
            (len(labels), channels, side, side), generator=generator, device=labels.device, dtype=self.transformer.dtype
        )
        self._set_timesteps(steps)
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        # Schedulers that add no noise do not have this argument.
        extra = {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self._scaled(x, t)
            out = self._oriented(self._estimate(scaled, self._times(t, len(x), x.device), labels, guidance), channels)
            x = self.scheduler.step(out, t, x, **extra).prev_sample
        return x

    @property
    def _flows(self) -> bool:
        return type(self.scheduler).__name__.startswith(_FLOW)

    def _set_timesteps(self, steps: int) -> None:
        if self._flows:
            # Equal steps from pure noise. The last step ends at the data.
            self.scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], device=self._execution_device)
        else:
            self.scheduler.set_timesteps(steps, device=self._execution_device)

    def _scaled(self, x: Tensor, t: Tensor) -> Tensor:
        scale = getattr(self.scheduler, "scale_model_input", None)
        return x if scale is None else scale(x, t)

    def _times(self, t: Tensor, count: int, device: torch.device) -> Tensor:
        """Convert ``t`` to the network's own time, float32 [count]."""
        time = torch.as_tensor(t, dtype=torch.float32, device=device)
        if self._flows:
            time = time / self.scheduler.config["num_train_timesteps"]
            time = 1 - time if isinstance(self.transformer, _TOWARDS_DATA) else time
        return time.expand(count)

    def _estimate(self, x: Tensor, times: Tensor, labels: Tensor, guidance: float) -> Tensor:
        if self.num_classes is None or guidance <= 1:
            return self.transformer(x, times, labels)
        both, times = torch.cat([labels, torch.full_like(labels, self.num_classes)]), times.repeat(2)
        if hasattr(self.transformer, "forward_with_cfg") and (
            not self._flows or isinstance(self.transformer, _TOWARDS_DATA)
        ):
            return self.transformer.forward_with_cfg(torch.cat([x, x]), times, both, guidance)[: len(x)]
        out = guided(lambda x: self.transformer(x, times, both), torch.cat([x, x]), guidance, channels=x.shape[1])
        return out[: len(x)]

    def _oriented(self, out: Tensor, channels: int) -> Tensor:
        """Return what the scheduler expects: noise (and variance if learned), or the velocity from data to noise."""
        if isinstance(self.transformer, _TOWARDS_DATA):
            return -out
        learned = self.scheduler.config.get("variance_type") in _LEARNED
        return out if learned else out[:, :channels]

    def _images(self, x: Tensor, output_type: str) -> Any:
        if self.vae is not None:
            x = self.vae.decode(x / self.vae.config["scaling_factor"]).sample
        elif x.shape[1] != 3:
            raise ArchitectureError('Without a VAE these latents are no images; ask for output_type="latent".')
        return self.image_processor.postprocess(x, output_type=output_type)
