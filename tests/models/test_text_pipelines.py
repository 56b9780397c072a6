"""Our text pipelines: their ODEs against written-out ones, guidance, seeds, folders, video, LinFusion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.models import tiny_text_pipelines as tiny
from vqcompress.models.flag_dit import FlagDiT
from vqcompress.models.linfusion import LinFusionUNet2DConditionModel, mount
from vqcompress.models.pipelines import pipeline_class
from vqcompress.models.pt_dit_pipeline import flow_times
from vqcompress.models.text_pipeline import TextPipeline

PROMPTS = ["a cat", "blue boats"]


PIPELINES, lumina, pt_dit, texts, vae = tiny.PIPELINES, tiny.lumina, tiny.pt_dit, tiny.texts, tiny.vae


def sampled(pipeline: TextPipeline, seeds: tuple[int, ...] = (0, 1), **arguments) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    given = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent", **arguments}
    return pipeline(PROMPTS[: len(seeds)], generator=generators, **given).images


@pytest.mark.parametrize("name", PIPELINES)
def test_an_image_depends_on_its_own_seed_and_prompt(name: str) -> None:
    pipeline = PIPELINES[name]()
    together = sampled(pipeline)
    assert together.shape == (2, 4, 8, 8)
    torch.testing.assert_close(together[:1], sampled(pipeline, seeds=(0,)), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together, sampled(pipeline, seeds=(2, 3)))


@pytest.mark.parametrize("name", PIPELINES)
def test_guidance_and_prompt_matter(name: str) -> None:
    pipeline = PIPELINES[name]()
    guided, free = sampled(pipeline), sampled(pipeline, guidance_scale=1.0)
    assert not torch.allclose(guided, free, atol=1e-4)
    assert not torch.allclose(guided, sampled(pipeline, negative_prompt="rain"), atol=1e-5)


@pytest.mark.parametrize("name", PIPELINES)
def test_folder_opens_and_repeats_bit_for_bit(name: str, tmp_path: Path) -> None:
    pipeline = PIPELINES[name]()
    pipeline.save_pretrained(tmp_path)
    opened = pipeline_class(tmp_path).from_pretrained(tmp_path)
    assert type(opened) is type(pipeline)
    assert sampled(opened).equal(sampled(pipeline))


@pytest.mark.parametrize("name", PIPELINES)
def test_images_come_out(name: str) -> None:
    pipeline = PIPELINES[name]()
    pixels = sampled(pipeline, output_type="pt", height=16, width=24)
    assert pixels.shape == (2, 3, 16, 24)
    assert float(pixels.min()) >= 0
    assert float(pixels.max()) <= 1
    assert [image.size for image in sampled(pipeline, output_type="pil")] == [(16, 16)] * 2


def test_lumina_steps_from_noise_at_0_to_the_image_at_1() -> None:
    pipeline, seen = lumina(), []
    velocity = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))

    def record(module: nn.Module, given: tuple) -> None:
        seen.append(given[1].tolist())

    pipeline.transformer.register_forward_pre_hook(record)
    pipeline.transformer.register_forward_hook(lambda *_: velocity)
    latents = sampled(pipeline, seeds=(4,), num_inference_steps=4, guidance_scale=1.0)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(latents, noise + velocity)
    assert seen == [[0.0], [0.25], [0.5], [0.75]]


def test_lumina_adapts_above_the_trained_size_only() -> None:
    pipeline = lumina()
    pipeline.vae_scale_factor = 8
    assert pipeline._adapted(128, 128) == {}
    adapted = pipeline._adapted(256, 256)
    assert adapted == {"scale_factor": 2.0, "scale_watershed": 0.3, "base_seqlen": 4096}
    assert lumina(FlagDiT)._adapted(2048, 2048) == {}


def test_pt_dit_steps_down_with_one_time_for_the_batch() -> None:
    pipeline, seen = pt_dit(), []
    velocity = torch.randn(2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    pipeline.transformer.register_forward_pre_hook(lambda module, given: seen.append(given[1].tolist()))
    pipeline.transformer.register_forward_hook(lambda *_: velocity)
    latents = sampled(pipeline, num_inference_steps=3, guidance_scale=1.0)
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    torch.testing.assert_close(latents, noise + velocity[:, :4, 0], rtol=1e-5, atol=1e-5)
    assert all(first == second for first, second in seen)
    assert [pair[0] for pair in seen] == pytest.approx(flow_times(3, 256, 1)[:3])


def test_flow_times() -> None:
    assert flow_times(4, 512 * 512, 1) == pytest.approx([1000.0, 750.0, 500.0, 250.0, 0.0])
    assert flow_times(2, 1024 * 1024, 1) == pytest.approx([1000.0, 1000 * 2 * 0.5 / 1.5, 0.0])


def test_pt_dit_makes_videos() -> None:
    pipeline = pt_dit(frame=2, compress_ratios=(2, 2, 2), proxy_compress_ratios=(2, 2, 2))
    assert sampled(pipeline, num_frames=4).shape == (2, 4, 4, 8, 8)
    assert sampled(pipeline, output_type="pt").shape == (2, 2, 3, 16, 16)
    assert [len(video) for video in sampled(pipeline, output_type="pil")] == [2, 2]


def test_linfusion_in_a_stable_diffusion_folder(official_run, tmp_path: Path) -> None:
    run, (tokenizer, _) = official_run("linfusion_sd15"), texts()
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=1,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    unet, scheduler = UNet2DConditionModel(**run.config), DDIMScheduler(clip_sample=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae(), encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    mount(pipeline, run.folder / "linfusion")
    pipeline.save_pretrained(tmp_path)
    opened = pipeline_class(tmp_path).from_pretrained(tmp_path)
    assert isinstance(opened, StableDiffusionPipeline)
    assert isinstance(opened.unet, LinFusionUNet2DConditionModel)
    for one in (pipeline, opened):
        one.set_progress_bar_config(disable=True)
    arguments = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent"}
    images = [
        one("a cat", generator=torch.Generator().manual_seed(0), **arguments).images for one in (pipeline, opened)
    ]
    assert images[0].equal(images[1])
