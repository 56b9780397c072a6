"""Train the UNet on text encoders that can read already: v-prediction, min-SNR odds, EMA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from vqcompress.shapes.dataset import LatentSet
from vqcompress.shapes.fast_arithmetic import fast_arithmetic
from vqcompress.shapes.lessons import LESSONS, lesson_at
from vqcompress.shapes.networks import TIME_IDS
from vqcompress.shapes.schedule import Schedule

BATCH = 32
CAPTION_DROP = 0.1
SNR_CAP = 5.0
EMA_DECAY = 0.999


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


class DenoiserTraining:
    """One run: the model, its moving average, the optimizer; `state` and `restore` make it resumable."""

    def __init__(self, model: Denoiser, data: LatentSet, alphas: torch.Tensor, schedule: Schedule, seed: int) -> None:
        self.model, self.data, self.alphas, self.schedule, self.seed = model.train(), data, alphas, schedule, seed
        self.lessons = LESSONS
        # Noise levels are drawn as often as they weigh: half of a uniform batch would hardly count.
        self.odds = min_snr_weight(alphas)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=0.01, fused=True)

    def run(self, tell: Callable[[int, float], None], every: int, pause: Callable[[], None]) -> None:
        """Train to the end of the schedule; each `every` steps `tell(step, mean loss)` and `pause()` are called."""
        self.schedule.restart_clock()
        losses: list[float] = []
        while not self.schedule.done:
            losses.append(self._step())
            if self.schedule.step % every == 0:
                tell(self.schedule.step, sum(losses) / len(losses))
                losses.clear()
                pause()

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs, by rename."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.schedule.step,
            "spent": self.schedule.spent,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def restore(self, path: Path, keep_clock: bool = True) -> None:
        """Go on from `save`'s file; without `keep_clock`, with its weights, a new schedule and the last lesson only."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        if keep_clock:
            self.schedule.step, self.schedule.spent = state["step"], state["spent"]
        else:
            self.lessons = LESSONS[-1:]  # the others have been learned

    @torch.no_grad()
    def averaged(self, model: Denoiser) -> Denoiser:
        """Copy what is frozen and the moving average of the rest into `model` and return it."""
        model.load_state_dict(self.model.state_dict())
        learning = [name for name, p in self.model.named_parameters() if p.requires_grad]
        for name, mean in zip(learning, self.average, strict=True):
            model.get_parameter(name).copy_(mean)
        return model.eval()

    def _step(self) -> float:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.schedule.step)
        loss = self._loss(generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._move_average()
        self.schedule.advance()
        return loss.item()

    def _loss(self, generator: torch.Generator) -> torch.Tensor:
        lesson = lesson_at(self.schedule.progress, self.lessons)
        clean, tokens = self.data.batch(BATCH, CAPTION_DROP, generator, lesson.shares)
        odds = self.odds + lesson.floor
        steps = torch.multinomial(odds, BATCH, replacement=True, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        signal = self.alphas[steps].sqrt()[:, None, None, None]
        sigma = (1 - self.alphas[steps]).sqrt()[:, None, None, None]
        with fast_arithmetic():
            v = self.model(signal * clean + sigma * noise, steps, tokens)
        error = (v.float() - (signal * noise - sigma * clean)).square().mean()
        return error * odds.mean()

    @torch.no_grad()
    def _move_average(self) -> None:
        step = self.schedule.step
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.parameters, 1 - decay)


def min_snr_weight(alphas: torch.Tensor) -> torch.Tensor:
    """Min-SNR-gamma weight of a v-prediction loss (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""
    snr = alphas / (1 - alphas)
    return snr.clamp(max=SNR_CAP) / (snr + 1)
