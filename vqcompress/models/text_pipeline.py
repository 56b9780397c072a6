"""What the text-to-image pipelines of our networks share: text in, one latent for each generator, images out."""

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


@dataclass
class TextPipelineOutput(BaseOutput):
    """``images``: PIL images, or a tensor; of a video, the list of its frames, or one more axis after the batch."""

    images: Any


class TextPipeline(DiffusionPipeline):
    """Base: tokenizer, text encoder, denoiser and image VAE. A subclass has the sampler and reads the text encoder."""

    model_cpu_offload_seq: Any = "text_encoder->transformer->vae"
    longest_prompt = 256
    padding: bool | str = True  # as the tokenizer takes it: to the longest prompt of the batch

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
        return self.transformer.config.get("sample_size", 128)

    def text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``[batch, length, width]`` of what the denoiser was trained to read."""
        raise NotImplementedError

    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str = "",
    ) -> tuple[Tensor, Tensor]:
        """Features ``[n, length, width]`` and mask ``[n, length]`` (1 where text) of the prompts; with guidance those
        of the negative prompt follow, as many again."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = [text for text in prompts for _ in range(num_images_per_prompt)]
        texts = prompts + [negative_prompt] * len(prompts) * do_classifier_free_guidance
        limit = min(self.longest_prompt, self.tokenizer.model_max_length)
        tokens = self.tokenizer(texts, padding=self.padding, truncation=True, max_length=limit, return_tensors="pt")
        return self.read_tokens(tokens.input_ids.to(device), tokens.attention_mask.to(device))

    def read_tokens(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features of token ids ``[n, length]``, and which of the features are text."""
        return self.text_features(tokens, mask).to(self.transformer.dtype), mask

    def noise(self, shape: tuple[int, ...], generator: Generators) -> Tensor:
        return randn_tensor(shape, generator, self._execution_device, self.transformer.dtype)

    def latent_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Rows and columns of the latent for a size in pixels; None: the trained size."""
        rows, columns = (side and side // self.vae_scale_factor for side in (height, width))
        return rows or self.default_sample_size, columns or self.default_sample_size

    def images(self, latents: Tensor, output_type: str) -> Any:
        """Latents ``[n, channels, h, w]`` as "latent", "pt" ``[n, 3, height, width]`` in 0..1, "np" or "pil"."""
        if output_type == "latent":
            return latents
        shift = self.vae.config.get("shift_factor") or 0.0
        decoded = self.vae.decode(latents / self.vae.config["scaling_factor"] + shift, return_dict=False)[0]
        return self.image_processor.postprocess(decoded, output_type)
