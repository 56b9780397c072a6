import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline

from vqcompress.architectures import architecture_of
from vqcompress.architectures.class_names import class_numbers
from vqcompress.errors import ArchitectureError
from vqcompress.sampling_config import SamplingConfig


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_same_images_as_the_diffusers_pipeline(dit: DiffusionPipeline, guidance: float) -> None:
    ours = architecture_of(dit).sample(
        dit, ["7", "207"], seeds=[1, 2], sampling=SamplingConfig(3, guidance), output_type="pt"
    )
    dit.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    theirs = dit(
        [7, 207],
        guidance_scale=guidance,
        generator=generators,
        num_inference_steps=3,
        output_type="pt",
    ).images
    dit.set_progress_bar_config()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


def test_noisy_samplers_draw_from_the_image_s_own_seed(dit: DiffusionPipeline) -> None:
    before, dit.scheduler = dit.scheduler, DDPMScheduler(clip_sample=False)
    try:
        family = architecture_of(dit)
        both = family.sample(dit, ["7", "9"], seeds=[1, 2], sampling=SamplingConfig(3), output_type="latent")
        alone = family.sample(dit, ["9"], seeds=[2], sampling=SamplingConfig(3), output_type="latent")
    finally:
        dit.scheduler = before
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)


def test_classes_by_id_and_name(dit: DiffusionPipeline) -> None:
    assert class_numbers(["0", "999", "tench", "rooster"], dit.labels, 1000) == [0, 999, 0, 7]


@pytest.mark.parametrize("prompt", ["1000", "-1", "a photo of a dog"])
def test_unknown_class(prompt: str) -> None:
    with pytest.raises(ArchitectureError, match="is no class of this model: give an id from 0 to 999"):
        class_numbers([prompt], {}, 1000)


def test_other_sizes_are_refused(dit: DiffusionPipeline) -> None:
    with pytest.raises(ArchitectureError, match="16x16 images only"):
        architecture_of(dit).sample(dit, ["7"], seeds=[1], sampling=SamplingConfig(1, height=32, width=32))


def test_modulation_is_quantized_and_its_embedders_are_not(dit: DiffusionPipeline) -> None:
    plans = {plan.name: plan.reason for plan in architecture_of(dit).layers(dit, "transformer")}
    assert plans["transformer_blocks.0.norm1.linear"] is None
    assert "timestep" in plans["transformer_blocks.0.norm1.emb.timestep_embedder.linear_1"]
