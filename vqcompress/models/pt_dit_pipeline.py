"""Text-to-image and text-to-video pipeline for PT-DiT: a rectified flow from noise at time 1000 to data at time 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqcompress.models.text_pipeline import Generators, TextPipeline, TextPipelineOutput

TIMES = 1000.0
# Number of pixels at which an image's times are not shifted.
BASE_PIXELS = 512 * 512


def flow_times(steps: int, pixels: int, frames: int) -> list[float]:
    """Return ``steps`` times from 1000 down, and 0 at the end. With more pixels or frames, more times are noisy ones.

    With ``r = √(pixels / 512²) · √frames``, a time u in [0, 1] becomes ``r·u / (1 + (r − 1)·u)``.
    """
    ratio = math.sqrt(pixels / BASE_PIXELS * frames)
    even = [1 - step / steps for step in range(steps + 1)]
    return [TIMES * ratio * u / (1 + (ratio - 1) * u) for u in even]


class PTDiTPipeline(TextPipeline):
    """Pipeline for PTDiT and a T5 encoder.

    An image VAE decodes the frames one by one, because diffusers does not have the causal video VAE of the published
    models. ``output_type="latent"`` returns the input of that video VAE.
    """

    longest_prompt = 200

    def text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.text_encoder(tokens, attention_mask=mask)[0]

    def _velocity(self, x: Tensor, time: float, text: tuple[Tensor, Tensor], guidance: float) -> Tensor:
        """Return the velocity at one time for the whole batch, as the network requires.

        The network's channels beyond the latent's are a variance and are dropped.
        """
        both = x.repeat(len(text[0]) // len(x), 1, 1, 1, 1)
        t = torch.full((len(both),), time, device=x.device)
        predicted = self.transformer(both, t, *text)[:, : x.shape[1]]
        if len(both) == len(x):
            return predicted
        conditional, unconditional = predicted.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def _frames(self, latents: Tensor, output_type: str) -> Any:
        """Decode latents ``[n, channels, frames, h, w]``. A single frame is returned as an image."""
        count, frames = len(latents), latents.shape[2]
        if frames == 1:
            return self.images(latents[:, :, 0], output_type)
        if output_type == "latent":
            return latents
        images = self.images(latents.transpose(1, 2).flatten(0, 1), output_type)
        videos = [images[start : start + frames] for start in range(0, count * frames, frames)]
        return torch.stack(videos) if isinstance(images, Tensor) else videos

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_inference_steps: int = 30,
        guidance_scale: float = 4.0,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        negative_prompt: str | Sequence[str] = "",
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> TextPipelineOutput | tuple[Any]:
        """Generate images or videos from prompts.

        ``height`` and ``width`` are in pixels. ``num_frames`` is that of the latent; None means the trained number.
        ``guidance_scale`` ≤ 1 means no guidance. ``generator``: one, or one per image or video.
        """
        free, config = guidance_scale > 1, self.transformer.config
        text = self.encode_prompt(prompt, self._execution_device, 1, free, negative_prompt)
        rows, columns = self.latent_size(height, width)
        frames = num_frames or config["frame"]
        count = len(text[0]) // (1 + free)
        x = self.noise((count, config["in_channels"], frames, rows, columns), generator)
        times = flow_times(num_inference_steps, rows * columns * self.vae_scale_factor**2, frames)
        for step in self.progress_bar(range(num_inference_steps)):
            here, there = times[step : step + 2]
            x = x + self._velocity(x, here, text, guidance_scale) * (here - there) / TIMES
        images = self._frames(x, output_type)
        self.maybe_free_model_hooks()
        return TextPipelineOutput(images) if return_dict else (images,)
