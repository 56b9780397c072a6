"""Train the autoencoder's decoder to invert the fixed patch code."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vqcompress.shapes.train.autoencoder import PatchCode
from vqcompress.shapes.train.schedule import Schedule
from vqcompress.shapes.train.trainer import Log, mixed_precision, train

BATCH = 48
LATENT_NOISE = 0.04  # the denoiser's latents are never exact, so the decoder must tolerate errors


def train_decoder(vae, images: np.ndarray, code: PatchCode, schedule: Schedule, seed: int, log: Log) -> None:
    """Train ``vae.decoder`` in place on uint8 ``images`` [n, 32, 32, 3]."""
    latents = torch.from_numpy(code.encode(images)).half()
    pixels = torch.from_numpy(images)

    def loss_of(generator: torch.Generator) -> Tensor:
        return _loss(vae.decoder, latents, pixels, generator)

    train(vae.decoder, loss_of, schedule, seed, log, weight_decay=1e-4)


def _loss(decoder, latents: Tensor, pixels: Tensor, generator: torch.Generator) -> Tensor:
    index = torch.randint(len(latents), (BATCH,), generator=generator)
    z = latents[index].float()
    z = z + LATENT_NOISE * torch.randn(z.shape, generator=generator)
    target = pixels[index].permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with mixed_precision():
        output = decoder(z)
    return functional.mse_loss(output.float(), target)


@torch.no_grad()
def reconstruction_psnr(vae, images: np.ndarray) -> float:
    """PSNR in dB of encode-decode over uint8 ``images``, on the 0..255 scale."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    out = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    return float(10 * torch.log10(4.0 / (out - x).square().mean()))
