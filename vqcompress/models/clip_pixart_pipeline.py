"""PixArt's network with CLIP text as in SDXL: hidden states of both encoders, and the pooled text as extra tokens.

PixArt (arXiv 2310.00426) has no input for pooled text. Here the pooled text becomes a few extra caption tokens. Each
extra token has its own columns of `caption_projection`, so each can encode a different property of the whole caption,
such as what one of its objects looks like. Cross-attention then selects between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from torch.nn.functional import pad
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from vqcompress.models.text_pipeline import Generators, TextPipeline, TextPipelineOutput


def caption_features(states: Tensor, pooled: Tensor, channels: int) -> Tensor:
    """Hidden states [b, t, s] and pooled text [b, p] -> caption tokens [b, t + k, channels], channels = s + k·p.

    Token t + i has the pooled text in the channels s + i·p to s + (i + 1)·p. Unused channels of a token are zero.
    """
    slots = (channels - states.shape[-1]) // pooled.shape[-1]
    blocks = torch.eye(slots, dtype=pooled.dtype, device=pooled.device)
    extra = torch.einsum("bp,ij->bijp", pooled, blocks).flatten(2)
    return torch.cat([pad(states, (0, extra.shape[-1])), pad(extra, (states.shape[-1], 0))], dim=1)


def read_captions(text_encoder: Any, text_encoder_2: Any, tokens: Tensor, channels: int) -> Tensor:
    """Token ids int64 [b, t] -> caption tokens float [b, t + k, channels]; see `caption_features`."""
    first = text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
    second = text_encoder_2(tokens, output_hidden_states=True)
    return caption_features(torch.cat([first, second.hidden_states[-2]], dim=-1), second.text_embeds, channels)


class ClipPixArtPipeline(TextPipeline):
    """Pipeline for PixArtTransformer2DModel with two CLIP encoders that share one tokenizer.

    Any scheduler that needs no extra arguments works.
    """

    model_cpu_offload_seq: Any = "text_encoder->text_encoder_2->transformer->vae"
    padding = "max_length"  # CLIP pads this way

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        transformer: PixArtTransformer2DModel,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL,
    ) -> None:
        super().__init__(tokenizer, text_encoder, transformer, vae)
        self.register_modules(text_encoder_2=text_encoder_2, scheduler=scheduler)

    def text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return caption tokens [n, t + k, channels]; see `read_captions`."""
        return read_captions(
            self.text_encoder, self.text_encoder_2, tokens, self.transformer.config["caption_channels"]
        )

    def read_tokens(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return caption tokens and a mask of ones. The network attends to the padding too, as in training."""
        features, _ = super().read_tokens(tokens, mask)
        return features, torch.ones(features.shape[:2], dtype=torch.long, device=features.device)

    def _estimate(self, x: Tensor, time: Tensor, text: Tensor, guidance: float) -> Tensor:
        """Return the network's estimate [n, channels, h, w] for latents of the same shape.

        If ``text`` has a second half, guidance moves the estimate away from it.
        """
        both = x.repeat(len(text) // len(x), 1, 1, 1)
        out = self.transformer(both, text, timestep=time.expand(len(both))).sample
        if len(both) == len(x):
            return out
        conditional, unconditional = out.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | Sequence[str] = "",
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> TextPipelineOutput | tuple[Any]:
        """Generate images from prompts.

        ``guidance_scale`` ≤ 1 means no guidance. ``height`` and ``width`` are in pixels. ``generator``: one, or one per
        image.
        """
        free = guidance_scale > 1
        text, _ = self.encode_prompt(prompt, self._execution_device, 1, free, negative_prompt)
        size = self.latent_size(height, width)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        count = len(text) // (1 + free)
        x = self.noise((count, self.transformer.config["in_channels"], *size), generator)
        x = x * self.scheduler.init_noise_sigma
        for time in self.progress_bar(self.scheduler.timesteps):
            out = self._estimate(self.scheduler.scale_model_input(x, time), time, text, guidance_scale)
            x = self.scheduler.step(out, time, x).prev_sample
        images = self.images(x, output_type)
        self.maybe_free_model_hooks()
        return TextPipelineOutput(images) if return_dict else (images,)
