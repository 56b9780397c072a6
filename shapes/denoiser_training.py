"""Train a denoiser on text encoders that can read already: v-prediction, min-SNR odds, EMA."""

from __future__ import annotations

from pathlib import Path

import torch

from vqcompress.shapes.dataset import LatentSet
from vqcompress.shapes.fast_arithmetic import fast_arithmetic
from vqcompress.shapes.layout import LayoutReader
from vqcompress.shapes.lessons import LESSONS, lesson_at
from vqcompress.shapes.networks import TIME_IDS
from vqcompress.shapes.schedule import Schedule
from vqcompress.shapes.training_run import TrainingRun

BATCH = 32
CAPTION_DROP = 0.1
SNR_CAP = 5.0


class Denoiser(torch.nn.Module):
    """UNet and text encoders as one module: (noisy latents, timesteps, tokens) -> v."""

    def __init__(self, unet, text_encoder, text_encoder_2) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.text_encoder_2 = unet, text_encoder, text_encoder_2

    def forward(self, noisy: torch.Tensor, steps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """noisy [b, 8, 8, 8], steps int64 [b], tokens int64 [b, t] -> v [b, 8, 8, 8]."""
        with torch.no_grad():  # the encoders have learned to read before (text_training.py)
            first = self.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
            second = self.text_encoder_2(tokens, output_hidden_states=True)
        states = torch.cat([first, second.hidden_states[-2]], dim=-1)
        added = {"text_embeds": second.text_embeds, "time_ids": torch.tensor([TIME_IDS]).repeat(len(noisy), 1)}
        return self.unet(noisy, steps, states, added_cond_kwargs=added).sample


class DenoiserTraining(TrainingRun):
    """A model that takes (noisy latents, timesteps, tokens) learns v."""

    def __init__(
        self,
        model: torch.nn.Module,
        data: LatentSet,
        alphas: torch.Tensor,
        schedule: Schedule,
        seed: int,
        reader: LayoutReader | None = None,
    ) -> None:
        super().__init__(model, schedule, seed, reader)
        self.data, self.alphas = data, alphas
        self.lessons = LESSONS
        # Noise levels are drawn as often as they weigh: half of a uniform batch would hardly count.
        self.odds = min_snr_weight(alphas)

    def restore(self, path: Path, keep_clock: bool = True) -> None:
        """As `TrainingRun.restore`; without `keep_clock`, with the last lesson only."""
        super().restore(path, keep_clock)
        if not keep_clock:
            self.lessons = LESSONS[-1:]  # the others have been learned

    def loss(self, generator: torch.Generator) -> torch.Tensor:
        lesson = self.lessons[-1] if self.schedule.cycle else lesson_at(self.schedule.cycle_progress, self.lessons)
        clean, tokens, layouts = self.data.batch(BATCH, CAPTION_DROP, generator, lesson.shares)
        odds = self.odds + lesson.floor
        steps = torch.multinomial(odds, BATCH, replacement=True, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        signal = self.alphas[steps].sqrt()[:, None, None, None]
        sigma = (1 - self.alphas[steps]).sqrt()[:, None, None, None]
        with fast_arithmetic():
            v = self.model(signal * clean + sigma * noise, steps, tokens)
        error = (v.float() - (signal * noise - sigma * clean)).square().mean()
        loss = error * odds.mean()
        return loss + self.reader.loss(layouts) if self.reader else loss


def min_snr_weight(alphas: torch.Tensor) -> torch.Tensor:
    """Min-SNR-gamma weight of a v-prediction loss (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""
    snr = alphas / (1 - alphas)
    return snr.clamp(max=SNR_CAP) / (snr + 1)
