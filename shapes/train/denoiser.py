"""The denoisers that read captions, and their training by v-prediction with min-SNR odds of the timesteps."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vqcompress.models.clip_pixart_pipeline import read_captions
from vqcompress.shapes.train.curriculum import CURRICULUM, CurriculumStage, stage_at
from vqcompress.shapes.train.dataset import CaptionedLatents
from vqcompress.shapes.train.layout import LayoutHead
from vqcompress.shapes.train.schedule import Schedule
from vqcompress.shapes.train.trainer import Trainer, mixed_precision

BATCH = 32
CAPTION_DROP = 0.1
SNR_CAP = 5.0


class UNetDenoiser(torch.nn.Module):
    """UNet and frozen text encoders as one module: (noisy latents, timesteps, tokens) -> v.

    ``side``: of images, in pixels.
    """

    def __init__(self, unet, text_encoder, text_encoder_2, side: int = 32) -> None:
        super().__init__()
        size = float(side)
        self.time_ids = (size, size, 0.0, 0.0, size, size)  # original size, crop corner, target size
        self.unet, self.text_encoder, self.text_encoder_2 = unet, text_encoder, text_encoder_2

    def forward(self, noisy: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        """noisy [b, channels, h, w], steps int64 [b], tokens int64 [b, t] -> v, as noisy."""
        with torch.no_grad():  # the encoders were trained before (text_encoders.py)
            first = self.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
            second = self.text_encoder_2(tokens, output_hidden_states=True)
        states = torch.cat([first, second.hidden_states[-2]], dim=-1)
        added = {"text_embeds": second.text_embeds, "time_ids": torch.tensor([self.time_ids]).repeat(len(noisy), 1)}
        return self.unet(noisy, steps, states, added_cond_kwargs=added).sample


class TransformerDenoiser(torch.nn.Module):
    """Transformer and frozen text encoders as one module: (noisy latents, timesteps, tokens) -> v.

    Encoded captions are cached, as each one comes up several times in a run.
    """

    def __init__(self, transformer, text_encoder, text_encoder_2) -> None:
        super().__init__()
        self.transformer, self.text_encoder, self.text_encoder_2 = transformer, text_encoder, text_encoder_2
        self._cache: dict[bytes, Tensor] = {}

    def forward(self, noisy: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        """noisy [b, 8, 8, 8], steps int64 [b], tokens int64 [b, t] -> v [b, 8, 8, 8]."""
        return self.transformer(noisy, self._features(tokens), timestep=steps).sample

    @torch.no_grad()
    def _features(self, tokens: Tensor) -> Tensor:
        """Caption tokens float32 [b, t + k, channels]; cached in half precision."""
        keys = [row.numpy().tobytes() for row in tokens]
        new = [i for i, key in enumerate(keys) if key not in self._cache]
        if new:
            channels = self.transformer.config["caption_channels"]
            found = read_captions(self.text_encoder, self.text_encoder_2, tokens[new], channels)
            self._cache.update({keys[i]: features.half() for i, features in zip(new, found, strict=True)})
        # Float32 before they are stacked: autocast's stack on the CPU takes no float16.
        return torch.stack([self._cache[key].float() for key in keys])


class DenoiserTrainer(Trainer):
    """Trains a model that takes (noisy latents, timesteps, tokens) to predict v."""

    def __init__(
        self,
        model: torch.nn.Module,
        data: CaptionedLatents,
        alphas: Tensor,
        schedule: Schedule,
        seed: int,
        head: LayoutHead | None = None,
        curriculum: tuple[CurriculumStage, ...] = CURRICULUM,
    ) -> None:
        super().__init__(model, schedule, seed, head)
        self.data, self.alphas = data, alphas
        self.curriculum = curriculum
        # Timesteps are drawn in proportion to their weight: with uniform draws half of a batch would hardly count.
        self.odds = min_snr_weight(alphas)

    def restore(self, path: Path, keep_clock: bool = True) -> None:
        """As `Trainer.restore`; without ``keep_clock``, in the curriculum's last stage."""
        super().restore(path, keep_clock)
        if not keep_clock:
            self.curriculum = self.curriculum[-1:]

    def loss(self, generator: torch.Generator) -> Tensor:
        last, progress = self.curriculum[-1], self.schedule.cycle_progress
        stage = last if self.schedule.cycle else stage_at(progress, self.curriculum)
        clean, tokens, layouts = self.data.batch(BATCH, CAPTION_DROP, generator, stage.shares)
        odds = self.odds + stage.floor
        steps = torch.multinomial(odds, BATCH, replacement=True, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        signal = self.alphas[steps].sqrt()[:, None, None, None]
        sigma = (1 - self.alphas[steps]).sqrt()[:, None, None, None]
        with mixed_precision():
            v = self.model(signal * clean + sigma * noise, steps, tokens)
        error = (v.float() - (signal * noise - sigma * clean)).square().mean()
        loss = error * odds.mean()
        return loss + self.head.loss(layouts) if self.head else loss


def min_snr_weight(alphas: Tensor) -> Tensor:
    """Min-SNR-gamma weight of a v-prediction loss (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""
    snr = alphas / (1 - alphas)
    return snr.clamp(max=SNR_CAP) / (snr + 1)
