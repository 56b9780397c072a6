"""The parts of the training: tokenizer, patch code, schedule, and a run that stops and resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vqcompress.shapes.scenes import monitor_captions, sample_scenes
from vqcompress.shapes.train.autoencoder import build_autoencoder, fit_patch_code, set_encoder
from vqcompress.shapes.train.curriculum import CURRICULUM, KINDS, kind_of, stage_at
from vqcompress.shapes.train.dataset import (
    CaptionedLatents,
    build_captioned_latents,
    tokenize,
    training_captions,
    training_images,
)
from vqcompress.shapes.train.denoiser import DenoiserTrainer, min_snr_weight
from vqcompress.shapes.train.layout import layout
from vqcompress.shapes.train.networks import build_scheduler, build_text_encoders
from vqcompress.shapes.train.schedule import FADE, Schedule
from vqcompress.shapes.train.text_encoders import (
    ATTRIBUTES,
    CaptionClassifier,
    attribute_accuracy,
    attributes_of,
    train_text_encoders,
)
from vqcompress.shapes.train.tokenizer import MAX_TOKENS, build_tokenizer, learn_vocabulary


def test_the_vocabulary_is_bytes_then_words_then_marks() -> None:
    vocabulary, merges = learn_vocabulary(["red ring", "red star"])
    assert list(vocabulary.values()) == list(range(512 + len(merges) + 2))
    assert {"red</w>", "ring</w>", "star</w>"} <= vocabulary.keys()
    assert list(vocabulary)[-2:] == ["<|startoftext|>", "<|endoftext|>"]


def test_unknown_words_fall_back_to_bytes() -> None:
    tokenizer = build_tokenizer(["red ring"])
    assert tokenizer.unk_token_id not in tokenizer("a blue ring").input_ids[1:-1]


def test_the_encoder_is_the_patch_code() -> None:
    images = training_images(256, seed=1)
    code = fit_patch_code(images)
    vae = build_autoencoder().eval()
    set_encoder(vae, code)
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    assert latents.numpy() == pytest.approx(code.encode(images), abs=0.03)
    assert code.encode(images).var(axis=(0, 2, 3)).mean() == pytest.approx(1.0, abs=0.05)


def test_a_latent_set_pairs_images_with_their_captions() -> None:
    code = fit_patch_code(training_images(64, seed=1))
    tokenizer = build_tokenizer(training_captions(500, seed=0))
    data = build_captioned_latents(8, 2, code, tokenizer)
    assert data.latents.shape == (8, 8, 8, 8)
    assert data.tokens.shape == (8, MAX_TOKENS)
    assert data.latents.numpy() == pytest.approx(code.encode(training_images(8, seed=2)), abs=0.01)
    texts = tokenizer.batch_decode(data.tokens.long(), skip_special_tokens=True)
    assert [text.strip() for text in texts] == training_captions(8, seed=2)
    layouts = np.stack([layout(scene) for scene in sample_scenes(8, 2, "train")])
    assert np.array_equal(data.layouts.numpy(), layouts)
    latents, _, drawn = data.batch(20, 0.5, torch.Generator().manual_seed(0))
    places = [int((data.latents.float() == one).flatten(1).all(1).nonzero()[0]) for one in latents]
    assert torch.equal(drawn, data.layouts[places].long())


def latent_set(tokens: torch.Tensor, kinds: torch.Tensor, empty: torch.Tensor) -> CaptionedLatents:
    """Of empty images."""
    count = len(tokens)
    latents, layouts = torch.zeros(count, 8, 8, 8).half(), torch.zeros(count, 8, 8, dtype=torch.uint8)
    return CaptionedLatents(latents, tokens.short(), layouts, kinds, empty)


def test_dropped_captions_are_the_empty_caption() -> None:
    data = latent_set(torch.ones(4, 5), torch.zeros(4).long(), torch.full((5,), 7))
    _, tokens, _ = data.batch(400, 0.25, torch.Generator().manual_seed(0))
    share = (tokens == 7).all(1).float().mean()
    assert share == pytest.approx(0.25, abs=0.06)
    assert set(tokens.unique().tolist()) == {1, 7}


def test_a_stage_gives_each_kind_its_share() -> None:
    kinds = torch.arange(1000) % len(KINDS)
    data = latent_set(kinds[:, None], kinds, torch.zeros(1).long())
    _, tokens, _ = data.batch(2000, 0.0, torch.Generator().manual_seed(0), (0.5, 0.5, *[0.0] * (len(KINDS) - 2)))
    counts = torch.bincount(tokens[:, 0], minlength=len(KINDS))
    assert counts[2:].sum() == 0
    assert counts[0] / 2000 == pytest.approx(0.5, abs=0.05)


def test_stages_cover_the_run_and_every_kind_of_caption() -> None:
    assert [stage_at(p) for p in (0.0, 0.99, 1.0)] == [CURRICULUM[0], CURRICULUM[-1], CURRICULUM[-1]]
    assert all(len(stage.shares) == len(KINDS) for stage in CURRICULUM)
    assert all(sum(stage.shares) == pytest.approx(1.0) for stage in CURRICULUM)
    assert min(CURRICULUM[-1].shares) > 0
    texts = {
        "a small red ring on a gray background": "single",
        "two red rings on a gray background": "two",
        "three red rings on a gray background": "three",
        "a red ring and a blue star on a gray background": "pair",
        "a red ring to the left of a blue star on a gray background": "left",
    }
    assert [KINDS[kind_of(text)] for text in texts] == list(texts.values())


def test_the_rate_warms_up_and_ends_at_zero() -> None:
    schedule = Schedule(peak=2.0, warmup=10, steps=100)
    rates = []
    while not schedule.done:
        rates.append(schedule.rate())
        schedule.advance()
    assert len(rates) == 100
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0, rel=0.05)
    assert rates[-1] < 0.001


def test_a_second_cycle_starts_where_a_run_of_one_ends_and_from_a_lower_peak() -> None:
    short, long = Schedule(peak=2.0, warmup=10, steps=100), Schedule(peak=2.0, warmup=10, steps=100, cycles=2)
    while not short.done:
        assert (long.rate(), long.cycle) == (short.rate(), 0)
        short.advance()
        long.advance()
    assert (long.cycle, long.cycle_progress, long.progress) == (1, 0.0, 0.5)
    later = []
    while not long.done:
        later.append(long.rate())
        long.advance()
    assert len(later) == 100
    assert max(later) == pytest.approx(2.0 * FADE, rel=0.05)
    assert (later[0], later[-1]) == (pytest.approx(0.2 * FADE), pytest.approx(0.0, abs=1e-3))


def test_a_run_may_end_in_the_middle_of_its_cycles() -> None:
    whole, part = Schedule(peak=2.0, warmup=10, steps=100, cycles=2), Schedule(2.0, 10, 100, cycles=2, until=120)
    while not part.done:
        assert part.rate() == whole.rate()
        part.advance()
        whole.advance()
    assert (part.step, part.cycle, whole.done) == (120, 1, False)


def test_a_run_by_the_clock_ends() -> None:
    schedule = Schedule(peak=1.0, seconds=0.01)
    while not schedule.done:
        schedule.advance()
    assert schedule.spent >= 0.01


def test_min_snr_weights_are_bounded() -> None:
    alphas = build_scheduler().alphas_cumprod
    weights = min_snr_weight(alphas)
    assert weights.min() >= 0
    assert weights.max() <= 5 / 6 + 1e-6
    assert torch.allclose(weights[-1], alphas[-1], rtol=1e-3)


def test_attributes_follow_positions_not_the_order_of_the_caption() -> None:
    one = attributes_of("a red ring above a blue star on a gray background")
    assert one == attributes_of("a blue star below a red ring on a gray background")
    assert one != attributes_of("a blue star above a red ring on a gray background")
    assert one != attributes_of("a red ring to the left of a blue star on a gray background")
    assert all(0 <= answer < classes for answer, classes in zip(one, ATTRIBUTES.values(), strict=True))
    sizes = {attributes_of(f"a {size}red ring on a gray background")[3] for size in ("", "small ", "large ")}
    assert sizes == {0, 1, 2}


def test_the_text_encoders_learn_attributes() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(training_captions(500, seed=0))
    classifier = CaptionClassifier(*build_text_encoders(tokenizer))
    seen, unseen = training_captions(5000, seed=1), monitor_captions(100)
    sets = [(tokenize(tokenizer, texts), torch.tensor([attributes_of(t) for t in texts])) for texts in (seen, unseen)]
    assert attribute_accuracy(classifier, *sets[1]) == 0.0
    train_text_encoders(classifier, *sets[0], Schedule(peak=2e-3, warmup=20, steps=100), 0, lambda step, loss: None)
    assert attribute_accuracy(classifier, *sets[1]) > 0.05


class TinyDenoiser(nn.Module):
    """Stands in for the UNet: a linear map of the latents plus a term per token."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.words = nn.Conv2d(8, 8, 1), nn.Embedding(16, 8).requires_grad_(False)

    def forward(self, noisy: torch.Tensor, steps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.mix(noisy) + self.words(tokens).mean(1)[:, :, None, None] + steps[:, None, None, None] / 1000


def tiny_training(steps: int) -> DenoiserTrainer:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(32, 8, 8, 8, generator=generator).half()
    tokens = torch.randint(16, (32, 4), generator=generator).short()
    layouts = torch.zeros(32, 8, 8, dtype=torch.uint8)
    data = CaptionedLatents(latents, tokens, layouts, torch.arange(32) % len(KINDS), torch.zeros(4).long())
    schedule = Schedule(peak=1e-2, warmup=2, steps=steps)
    return DenoiserTrainer(TinyDenoiser(), data, build_scheduler().alphas_cumprod, schedule, seed=3)


def run_until(training: DenoiserTrainer, stop: int) -> None:
    """Train to step `stop`; leaving in the middle is what a killed process does."""

    class Stop(Exception):
        pass

    def after_log() -> None:
        if training.schedule.step == stop:
            raise Stop

    with pytest.raises(Stop):
        training.run(lambda step, loss: None, 1, after_log)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = tiny_training(8)
    whole.run(lambda step, loss: None, 1, lambda: None)
    first = tiny_training(8)
    run_until(first, 3)
    first.save(tmp_path / "run.pt")
    second = tiny_training(8)
    second.restore(tmp_path / "run.pt")
    second.run(lambda step, loss: None, 1, lambda: None)
    assert second.schedule.step == 8
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)
    averaged = second.averaged(TinyDenoiser())
    assert all(torch.equal(a, b) for a, b in zip(averaged.mix.parameters(), whole.average, strict=True))
    assert torch.equal(averaged.words.weight, whole.model.words.weight), "what is frozen is copied as it is"


def test_a_renewed_run_keeps_weights_and_starts_its_schedule_anew(tmp_path: Path) -> None:
    first = tiny_training(2)
    first.run(lambda step, loss: None, 1, lambda: None)
    first.save(tmp_path / "run.pt")
    renewed = tiny_training(2)
    renewed.restore(tmp_path / "run.pt", keep_clock=False)
    assert renewed.schedule.step == 0
    assert renewed.curriculum == CURRICULUM[-1:]
    assert torch.equal(renewed.parameters[0], first.parameters[0])


def test_training_scenes_are_reproducible() -> None:
    assert np.array_equal(training_images(4, seed=5), training_images(4, seed=5))
