"""A denoiser of two small layers, sampled with guidance by diffusers' schedulers, with or without gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CHANNELS, SIDE = 4, 8


class ToyDenoiser(nn.Module):
    """``[n, 4, 8, 8] -> [n, 4, 8, 8]``: one layer reads the sample, another the condition, which is 0 without one."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.shared, self.text = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Linear(6, CHANNELS)

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        text = self.text(condition)[:, :, None, None]
        return (torch.tanh(self.shared(sample)) + torch.sin(text + sample / 2),)


class ToyArchitecture:
    """As much of `vqcompress.architectures.Architecture` as a sampling run uses; a prompt seeds its condition."""

    denoiser, denoisers, defaults, batch_limit = "denoiser", ("denoiser",), None, None

    def __init__(self, scheduler: Any, steps: int = 6, guidance: float = 5.0) -> None:
        self.scheduler, self.steps, self.guidance = scheduler, steps, guidance

    def module(self, pipeline: Any, component: str) -> nn.Module:
        return pipeline

    def sample(self, pipeline: Any, prompts: Any, *, seeds: Any, sampling: Any = None, output_type: str = "") -> Tensor:
        with torch.no_grad():
            return self.run(pipeline, prompts, seeds)

    def run(self, denoiser: nn.Module, prompts: Any, seeds: Any) -> Tensor:
        """Differentiable in the denoiser's parameters where gradients are on."""
        noise = [torch.randn(CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        condition = torch.stack(
            [torch.randn(6, generator=torch.Generator().manual_seed(int(prompt))) for prompt in prompts]
        )
        both = torch.cat([torch.zeros_like(condition), condition])
        self.scheduler.set_timesteps(self.steps)
        x = torch.stack(noise) * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for t in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
            out = denoiser(sample=torch.cat([scaled, scaled]), timestep=t, condition=both)[0]
            empty, conditional = out.chunk(2)
            x = self.scheduler.step(empty + self.guidance * (conditional - empty), t, x).prev_sample
        return x
