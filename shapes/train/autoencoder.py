"""The autoencoder: its encoder is *set* to a PCA of 4x4 patches; only its decoder is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

PATCH = 4
CHANNELS = 8
WHITENING = 0.75  # at 1 the denoiser spends itself on the faintest detail, at 0 it neglects shapes
ANCHOR = 30.0  # value of constant channels, which fix the variance that the last group norm divides by
SHRINK, LIFT = 0.2, 20.0  # keep that norm's output where SiLU is linear


@dataclass(frozen=True)
class PatchCode:
    """Linear code of 4x4 patches: latent = basis @ (patch - mean); basis float32 [channels, 48], mean [48]."""

    basis: np.ndarray
    mean: np.ndarray

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, side, side, 3] -> float32 [n, channels, side / 4, side / 4]."""
        flat = (patches(images) - self.mean) @ self.basis.T
        return np.ascontiguousarray(flat.transpose(0, 3, 1, 2))


def patches(images: np.ndarray) -> np.ndarray:
    """uint8 [n, side, side, 3] -> float32 [n, side / 4, side / 4, 48] in -1..1, ordered (row, column, colour)."""
    n, side = images.shape[0], images.shape[1] // PATCH
    cut = images.reshape(n, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(n, side, side, -1).astype(np.float32) / 127.5 - 1.0


def fit_patch_code(images: np.ndarray, channels: int = CHANNELS) -> PatchCode:
    """Principal components of the patches, mostly whitened and scaled to unit mean variance."""
    samples = patches(images).reshape(-1, PATCH * PATCH * 3).astype(np.float64)
    mean = samples.mean(0)
    variance, vectors = np.linalg.eigh(np.cov(samples - mean, rowvar=False))
    spread = np.sqrt(variance[::-1][:channels])
    basis = vectors[:, ::-1][:, :channels].T
    basis *= np.sign(basis.sum(1, keepdims=True) + 1e-12)
    basis = basis / (spread**WHITENING)[:, None]
    basis /= np.sqrt(np.mean(spread ** (2 - 2 * WHITENING)))
    return PatchCode(basis.astype(np.float32), mean.astype(np.float32))


def build_autoencoder(side: int = 32, channels: int = CHANNELS):
    """An untrained `AutoencoderKL`: ``side`` pixels a side to a quarter of that, in ``channels``."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=side,
        scaling_factor=1.0,  # the patch code already has unit variance
        force_upcast=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


@torch.no_grad()
def set_encoder(vae, code: PatchCode) -> None:
    """Write the patch code into the encoder: residual branches zero, convolutions as space-to-depth + projection."""
    encoder = vae.encoder
    for parameter in encoder.parameters():
        parameter.zero_()
    blocks = encoder.down_blocks
    _copy_channels(encoder.conv_in.weight[:, :, 1, 1], 3)
    _space_to_depth(blocks[0].downsamplers[0].conv.weight, 3)
    _copy_channels(blocks[1].resnets[0].conv_shortcut.weight[:, :, 0, 0], 12)
    _project(blocks[1].downsamplers[0].conv, code)
    channels = len(code.basis)
    _copy_channels(blocks[2].resnets[0].conv_shortcut.weight[:, :, 0, 0], 2 * channels)
    _pass_through(encoder, channels)


def _copy_channels(weight: torch.Tensor, count: int) -> None:
    weight[range(count), range(count)] = 1.0


def _space_to_depth(weight: torch.Tensor, channels: int) -> None:
    """Stride-2 kernel [out, in, 3, 3]: out channel (row, column, colour) copies one pixel of the 2x2 block."""
    for row in range(2):
        for column in range(2):
            for c in range(channels):
                weight[(row * 2 + column) * channels + c, c, row, column] = 1.0


def _project(conv, code: PatchCode) -> None:
    """Second stride-2 convolution: 2x2 blocks of 12 channels -> latents, and the anchors from the bias."""
    channels = len(code.basis)
    basis = torch.from_numpy(code.basis).reshape(channels, 2, 2, 2, 2, 3)  # big row, row, big column, column
    basis = basis.permute(0, 2, 4, 5, 1, 3).reshape(channels, 12, 2, 2)
    conv.weight[:channels, :12, :2, :2] = basis
    conv.bias[:channels] = -torch.from_numpy(code.basis @ code.mean)
    half = channels // 2
    conv.bias[channels : channels + half] = ANCHOR
    conv.bias[channels + half : 2 * channels] = -ANCHOR


def _pass_through(encoder, channels: int) -> None:
    """Undo the last norm and SiLU: anchors fix the scale, and subtracting them restores the mean."""
    norm, out = encoder.conv_norm_out, encoder.conv_out
    group = norm.num_channels // norm.num_groups  # holds the latents, as many anchors, and zeros
    norm.weight[: 2 * channels] = SHRINK * ANCHOR * (channels / group) ** 0.5
    norm.bias[: 2 * channels] = LIFT
    centre = out.weight[:, :, 1, 1]
    centre[range(channels), range(channels)] = 1.0 / SHRINK
    centre[:channels, channels : 2 * channels] = -1.0 / SHRINK / channels
    out.bias[channels:] = -30.0  # log variance: the code is deterministic
