"""The transformer of `shapes-dit` with the text encoders as one module, for training as the UNet is trained."""

from __future__ import annotations

import torch

from vqcompress.models.clip_pixart_pipeline import read_captions


class TransformerDenoiser(torch.nn.Module):
    """Transformer and frozen text encoders: (noisy latents, timesteps, tokens) -> v.

    What the encoders make of a caption is kept: each returns several times in a run.
    """

    def __init__(self, transformer, text_encoder, text_encoder_2) -> None:
        super().__init__()
        self.transformer, self.text_encoder, self.text_encoder_2 = transformer, text_encoder, text_encoder_2
        self._read: dict[bytes, torch.Tensor] = {}

    def forward(self, noisy: torch.Tensor, steps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """noisy [b, 8, 8, 8], steps int64 [b], tokens int64 [b, t] -> v [b, 8, 8, 8]."""
        return self.transformer(noisy, self._features(tokens), timestep=steps).sample

    @torch.no_grad()
    def _features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Caption tokens float32 [b, t + k, channels]; kept in half precision."""
        names = [row.numpy().tobytes() for row in tokens]
        new = [i for i, name in enumerate(names) if name not in self._read]
        if new:
            channels = self.transformer.config["caption_channels"]
            found = read_captions(self.text_encoder, self.text_encoder_2, tokens[new], channels)
            self._read.update({names[i]: row.half() for i, row in zip(new, found, strict=True)})
        # Float32 before they are stacked: autocast's stack on the CPU takes no float16.
        return torch.stack([self._read[name].float() for name in names])
