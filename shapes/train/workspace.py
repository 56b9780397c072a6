"""What the training stages share: seed, folders, patch code, tokenizer and untrained networks."""

from __future__ import annotations

from pathlib import Path

import torch

from vqcompress.shapes.train.autoencoder import PatchCode, build_autoencoder, fit_patch_code, set_encoder
from vqcompress.shapes.train.dataset import training_captions, training_images
from vqcompress.shapes.train.denoiser import UNetDenoiser
from vqcompress.shapes.train.networks import build_text_encoders
from vqcompress.shapes.train.tokenizer import build_tokenizer
from vqcompress.shapes.train.world import SHAPES_WORLD, World

PATCH_IMAGES, VOCABULARY_CAPTIONS = 8_000, 5_000


class Workspace:
    """Rebuilt from the seed at every start.

    Text encoders and decoder are the same for every model of a world: ``parts`` is the work folder that has them.
    """

    def __init__(
        self, out: Path, work: Path, seed: int, parts: Path | None = None, world: World = SHAPES_WORLD
    ) -> None:
        torch.manual_seed(seed)
        self.out, self.work, self.seed, self.parts, self.world = out, work, seed, parts or work, world
        work.mkdir(parents=True, exist_ok=True)
        self.code: PatchCode = fit_patch_code(training_images(PATCH_IMAGES, seed, world), world.channels)
        self.tokenizer = build_tokenizer(training_captions(VOCABULARY_CAPTIONS, seed, world), world.max_tokens)
        self.vae = build_autoencoder(world.side, world.channels).eval()
        set_encoder(self.vae, self.code)
        self.model = UNetDenoiser(world.build_unet(), *build_text_encoders(self.tokenizer), world.side)

    def load_decoder(self) -> None:
        """Load the trained decoder, if there is one yet."""
        from safetensors.torch import load_file

        path = self.parts / "decoder.safetensors"
        if path.exists():
            self.vae.decoder.load_state_dict(load_file(path))

    def load_text_encoders(self) -> None:
        """Load the trained text encoders."""
        from safetensors.torch import load_file

        encoders = torch.nn.ModuleList([self.model.text_encoder, self.model.text_encoder_2])
        encoders.load_state_dict(load_file(self.parts / "text.safetensors"))
