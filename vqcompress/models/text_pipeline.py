"""Base class of our text-to-image pipelines: encoding of prompts, initial noise, decoding of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None

TEXT_LATENT_SIDE = 128
"""Side of the latents of networks that were trained on many sizes and name none: 1024 pixels."""


@dataclass
class TextPipelineOutput(BaseOutput):
    """``images``: PIL images, or a tensor. A video is a list of frames, or has one more axis after the batch."""

    images: Any


class TextPipeline(DiffusionPipeline):
    """Base class with tokenizer, text encoder, denoiser and image VAE.

    A subclass adds the sampler and the reading of the text encoder's output.
    """

    model_cpu_offload_seq: Any = "text_encoder->transformer->vae"
    longest_prompt = 256
    padding: bool | str = True  # the tokenizer's argument; True pads to the longest prompt of the batch

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: PreTrainedModel,
        transformer: ModelMixin,
        vae: AutoencoderKL,
    ) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, vae=vae)
        self.vae_scale_factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def default_sample_size(self) -> int:
        """Side of a latent when no size is given."""
        return self.transformer.config.get("sample_size", TEXT_LATENT_SIDE)

    def text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the text features ``[batch, length, width]`` that the denoiser was trained on."""
        raise NotImplementedError

    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | Sequence[str] = "",
    ) -> tuple[Tensor, Tensor]:
        """Return features ``[n, length, width]`` and mask ``[n, length]`` (1 for text) of the prompts.

        With guidance, the same number of entries follows for ``negative_prompt``, one for all or one for each prompt.
        """
        prompts = _repeated([prompt] if isinstance(prompt, str) else prompt, num_images_per_prompt)
        one = isinstance(negative_prompt, str)
        negative = [negative_prompt] * len(prompts) if one else _repeated(negative_prompt, num_images_per_prompt)
        texts = prompts + negative * do_classifier_free_guidance
        limit = min(self.longest_prompt, self.tokenizer.model_max_length)
        tokens = self.tokenizer(texts, padding=self.padding, truncation=True, max_length=limit, return_tensors="pt")
        return self.read_tokens(tokens.input_ids.to(device), tokens.attention_mask.to(device))

    def read_tokens(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of token ids ``[n, length]``, and a mask that shows which features are text."""
        return self.text_features(tokens, mask).to(self.transformer.dtype), mask

    def noise(self, shape: tuple[int, ...], generator: Generators) -> Tensor:
        return randn_tensor(shape, generator, self._execution_device, self.transformer.dtype)

    def latent_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Rows and columns of the latent for a size in pixels. None means the trained size."""
        rows, columns = (side and side // self.vae_scale_factor for side in (height, width))
        return rows or self.default_sample_size, columns or self.default_sample_size

    def images(self, latents: Tensor, output_type: str) -> Any:
        """Return latents ``[n, channels, h, w]`` as "latent", "pt" ``[n, 3, height, width]`` in 0..1, "np" or "pil"."""
        if output_type == "latent":
            return latents
        shift = self.vae.config.get("shift_factor") or 0.0
        decoded = self.vae.decode(latents / self.vae.config["scaling_factor"] + shift, return_dict=False)[0]
        return self.image_processor.postprocess(decoded, output_type)


def _repeated(texts: Sequence[str], times: int) -> list[str]:
    return [text for text in texts for _ in range(times)]
