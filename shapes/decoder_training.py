"""Train the autoencoder's decoder to undo the fixed patch code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from vqcompress.shapes.autoencoder import PatchCode
from vqcompress.shapes.descent import descend
from vqcompress.shapes.fast_arithmetic import fast_arithmetic
from vqcompress.shapes.schedule import Schedule

BATCH = 48
LATENT_NOISE = 0.04  # the denoiser's latents are never exact; the decoder must forgive that


def train_decoder(vae, images: np.ndarray, code: PatchCode, schedule: Schedule, seed: int, tell: Callable) -> None:
    """Train `vae.decoder` in place on uint8 `images` [n, 32, 32, 3]; `tell(step, loss)` hears of the progress."""
    latents = torch.from_numpy(code.encode(images)).half()
    pictures = torch.from_numpy(images)

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        return _loss(vae.decoder, latents, pictures, generator)

    descend(vae.decoder, loss_of, schedule, seed, tell, weight_decay=1e-4)


def _loss(decoder, latents, pictures, generator) -> torch.Tensor:
    index = torch.randint(len(latents), (BATCH,), generator=generator)
    z = latents[index].float()
    z = z + LATENT_NOISE * torch.randn(z.shape, generator=generator)
    target = pictures[index].permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with fast_arithmetic():
        output = decoder(z)
    return functional.mse_loss(output.float(), target)


@torch.no_grad()
def reconstruction_psnr(vae, images: np.ndarray) -> float:
    """PSNR in dB of encode-decode over uint8 `images`, on the 0..255 scale."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    out = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    return float(10 * torch.log10(4.0 / (out - x).square().mean()))
