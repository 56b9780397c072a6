"""The training of `posters`: its parts fit 64-pixel scenes, and a step of it teaches the UNet and the layout head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vqcompress.shapes.posters.scenes import sample_posters
from vqcompress.shapes.train.autoencoder import build_autoencoder, fit_patch_code, set_encoder
from vqcompress.shapes.train.dataset import build_captioned_latents, training_captions, training_images
from vqcompress.shapes.train.denoiser import UNetDenoiser
from vqcompress.shapes.train.layout import poster_layout
from vqcompress.shapes.train.model_configs import MODEL_CONFIGS
from vqcompress.shapes.train.networks import build_text_encoders
from vqcompress.shapes.train.schedule import Schedule
from vqcompress.shapes.train.tokenizer import build_tokenizer
from vqcompress.shapes.train.world import POSTERS_WORLD

CONFIG = MODEL_CONFIGS["posters"]


@pytest.fixture(scope="module")
def model() -> UNetDenoiser:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(training_captions(200, 0, POSTERS_WORLD), POSTERS_WORLD.max_tokens)
    return UNetDenoiser(POSTERS_WORLD.build_unet(), *build_text_encoders(tokenizer), POSTERS_WORLD.side)


def test_the_encoder_is_the_patch_code_of_more_channels() -> None:
    images = training_images(64, 1, POSTERS_WORLD)
    code = fit_patch_code(images, POSTERS_WORLD.channels)
    vae = build_autoencoder(POSTERS_WORLD.side, POSTERS_WORLD.channels).eval()
    set_encoder(vae, code)
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    assert latents.shape == (64, 12, 16, 16)
    assert latents.numpy() == pytest.approx(code.encode(images), abs=0.05)


def test_a_latent_set_pairs_posters_with_their_captions() -> None:
    code = fit_patch_code(training_images(64, 1, POSTERS_WORLD), POSTERS_WORLD.channels)
    tokenizer = build_tokenizer(training_captions(2000, 0, POSTERS_WORLD), POSTERS_WORLD.max_tokens)
    data = build_captioned_latents(8, 2, code, tokenizer, POSTERS_WORLD)
    assert data.latents.numpy() == pytest.approx(code.encode(training_images(8, 2, POSTERS_WORLD)), abs=0.01)
    texts = [text.strip() for text in tokenizer.batch_decode(data.tokens.long(), skip_special_tokens=True)]
    assert texts == [text.lower() for text in training_captions(8, 2, POSTERS_WORLD)]
    assert np.array_equal(data.layouts.numpy(), np.stack([poster_layout(p) for p in sample_posters(8, 2, "train")]))
    assert max(len(text.split()) for text in training_captions(2000, 3, POSTERS_WORLD)) + 2 <= POSTERS_WORLD.max_tokens


def test_most_weights_lie_in_transformers_on_maps_of_some_size(model: UNetDenoiser) -> None:
    sizes: dict[str, int] = {}
    for name, module in model.unet.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            sizes[name] = module.weight.numel()
    total = sum(parameter.numel() for parameter in model.unet.parameters())
    assert total <= 30e6
    assert sum(size for name, size in sizes.items() if "attentions" in name) > 0.6 * total
    smallest: list[int] = []
    hooks = [
        part.register_forward_hook(lambda part, args, out: smallest.append(out.shape[-1]))
        for part in model.unet.modules()
        if isinstance(part, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        model(torch.randn(1, 12, 16, 16), torch.tensor([500]), torch.zeros(1, 24, dtype=torch.long))
    for hook in hooks:
        hook.remove()
    assert min(smallest) == 8


def test_a_step_teaches_the_network_and_the_head(model: UNetDenoiser) -> None:
    class Parts:
        """What `trainer` asks of a workspace."""

        seed = 0
        code = fit_patch_code(training_images(64, 1, POSTERS_WORLD), POSTERS_WORLD.channels)
        tokenizer = build_tokenizer(training_captions(2000, 0, POSTERS_WORLD), POSTERS_WORLD.max_tokens)

    for encoder in (model.text_encoder, model.text_encoder_2):
        encoder.requires_grad_(False)
    trainer = CONFIG.trainer(model, Parts(), 64, Schedule(peak=1e-3, warmup=1, steps=4))
    before = [parameter.detach().clone() for parameter in trainer.head.parameters()]
    weight = model.unet.mid_block.attentions[0].proj_in.weight
    start = weight.detach().clone()
    assert trainer.train_step() > 0
    assert not torch.equal(weight, start)
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.head.parameters(), strict=True))
