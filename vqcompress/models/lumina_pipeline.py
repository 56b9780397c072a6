"""Text-to-image pipeline for Lumina-T2I and Lumina-Next: an ODE from noise at time 0 to the image at time 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqcompress.models.guidance import guided
from vqcompress.models.next_dit import NextDiT
from vqcompress.models.text_pipeline import Generators, TextPipeline, TextPipelineOutput

# Lumina-Next: side of the training images in pixels, and the time until which larger images interpolate positions.
TRAINED_SIDE = 1024
WATERSHED = 0.3


class LuminaTextPipeline(TextPipeline):
    """Pipeline for NextDiT or FlagDiT. The text features are the second-to-last hidden states of a language model."""

    def text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.text_encoder(tokens, attention_mask=mask, output_hidden_states=True).hidden_states[-2]

    def _adapted(self, rows: int, columns: int) -> dict[str, Any]:
        """NextDiT's arguments for sizes above the trained one, as in the paper; empty in all other cases."""
        factor = math.sqrt(rows * columns) * self.vae_scale_factor / TRAINED_SIDE
        if factor <= 1 or not isinstance(self.transformer, NextDiT):
            return {}
        side = TRAINED_SIDE // self.vae_scale_factor // self.transformer.config["patch_size"]
        return {"scale_factor": factor, "scale_watershed": WATERSHED, "base_seqlen": side**2}

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_inference_steps: int = 30,
        guidance_scale: float = 4.0,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | Sequence[str] = "",
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> TextPipelineOutput | tuple[Any]:
        """Generate images with Euler steps of equal length and guidance on three channels.

        ``guidance_scale`` ≤ 1 means no guidance. ``height`` and ``width`` are in pixels. ``generator``: one, or one per
        image.
        """
        free = guidance_scale > 1
        text = self.encode_prompt(prompt, self._execution_device, 1, free, negative_prompt)
        count, size = len(text[0]) // (1 + free), self.latent_size(height, width)
        x = self.noise((count, self.transformer.config["in_channels"], *size), generator)
        adapted = self._adapted(*size)

        def velocity(latents: Tensor, time: float) -> Tensor:
            t = torch.full((len(latents),), time, device=latents.device)
            return self.transformer(latents, t, *text, **adapted)

        for step in self.progress_bar(range(num_inference_steps)):
            time = step / num_inference_steps
            if free:
                v = guided(partial(velocity, time=time), x.repeat(2, 1, 1, 1), guidance_scale)[:count]
            else:
                v = velocity(x, time)
            x = x + v / num_inference_steps
        images = self.images(x, output_type)
        self.maybe_free_model_hooks()
        return TextPipelineOutput(images) if return_dict else (images,)
