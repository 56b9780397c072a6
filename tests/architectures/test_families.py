"""What every family must do: plan, sample, reopen."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FluxModularPipeline
from torch import nn

from vqcompress.architectures import Architecture, architecture_of, open_pipeline
from vqcompress.errors import ArchitectureError
from vqcompress.sampling_config import SamplingConfig


def prompts_for(family: Architecture) -> list[str]:
    return ["7", "golden retriever"] if family.prompt_set == "imagenet" else ["a red cat", "b"]


def sample(pipeline: DiffusionPipeline, guidance: float | None = None, **options) -> torch.Tensor:
    family = architecture_of(pipeline)
    given = {"seeds": [3, 4], "output_type": "latent"} | options
    return family.sample(
        pipeline, given.pop("prompts", prompts_for(family)), sampling=SamplingConfig(2, guidance, 16, 16), **given
    )


@pytest.fixture(autouse=True)
def _small_lumina(pipeline: DiffusionPipeline, request: pytest.FixtureRequest) -> None:
    if type(pipeline).__name__ == "LuminaPipeline":
        pipeline.vae_scale_factor = 2  # the pipeline assumes the published autoencoder's 8


def test_every_matrix_of_the_denoiser_is_planned(pipeline: DiffusionPipeline) -> None:
    family = architecture_of(pipeline)
    plans = {plan.name: plan for plan in family.layers(pipeline, family.denoiser)}
    denoiser = family.module(pipeline, family.denoiser)
    matrices = {name.removesuffix(".weight") for name, p in denoiser.named_parameters() if p.ndim > 1}
    assert plans.keys() == matrices
    weights = sum(torch.Size(plan.shape).numel() for plan in plans.values() if plan.reason is None)
    assert weights > sum(p.numel() for p in denoiser.parameters()) / 4
    for plan in plans.values():
        if plan.reason is None:
            assert isinstance(denoiser.get_submodule(plan.name), nn.Linear | nn.Conv2d)


def test_an_image_does_not_depend_on_its_batch(pipeline: DiffusionPipeline) -> None:
    both = sample(pipeline)
    alone = sample(pipeline, prompts=prompts_for(architecture_of(pipeline))[1:], seeds=[4])
    assert torch.isfinite(both).all()
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3 * float(both.abs().max()))
    assert not torch.equal(sample(pipeline, seeds=[3, 5])[1], both[1])
    assert torch.equal(sample(pipeline), both)


def test_guidance_and_text_matter(pipeline: DiffusionPipeline) -> None:
    both = sample(pipeline)
    assert not torch.equal(sample(pipeline, guidance=1.0), both)
    other = ["207", "1"] if architecture_of(pipeline).prompt_set == "imagenet" else ["zebra", "q"]
    assert not torch.equal(sample(pipeline, prompts=other), both)


def test_pictures_come_in_every_form(pipeline: DiffusionPipeline) -> None:
    tensor = sample(pipeline, output_type="pt")
    assert tensor.shape == (2, 3, 16, 16)
    assert 0 <= float(tensor.min()) <= float(tensor.max()) <= 1
    assert [image.size for image in sample(pipeline, output_type="pil")] == [(16, 16), (16, 16)]


def test_sampling_leaves_no_trace(pipeline: DiffusionPipeline) -> None:
    family = architecture_of(pipeline)
    denoiser = family.module(pipeline, family.denoiser)
    denoiser.train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    sample(pipeline)
    assert torch.equal(torch.rand(1), expected)
    assert denoiser.training
    assert not getattr(pipeline, "_progress_bar_config", {})
    denoiser.eval()


def test_modular_pipelines_are_refused_with_what_to_do(tmp_path: Path) -> None:
    modular = FluxModularPipeline()
    with pytest.raises(ArchitectureError, match=r"FluxModularPipeline is a modular pipeline.*vqcompress\.quantize"):
        architecture_of(modular)
    (tmp_path / "modular_model_index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArchitectureError, match=r"is a modular pipeline.*load_components\(\)"):
        open_pipeline(tmp_path)


def test_as_many_seeds_as_prompts(pipeline: DiffusionPipeline) -> None:
    with pytest.raises(ArchitectureError, match="2 prompts need as many seeds, got 1"):
        sample(pipeline, seeds=[1])


def test_a_saved_folder_opens_to_the_same_images(pipeline: DiffusionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    opened = open_pipeline(str(tmp_path / "model"))
    if type(opened).__name__ == "LuminaPipeline":
        opened.vae_scale_factor = 2
    assert architecture_of(opened).name == architecture_of(pipeline).name
    assert torch.equal(sample(opened), sample(pipeline))


def test_dtype_reaches_the_denoiser(pipeline: DiffusionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    opened = open_pipeline(tmp_path / "model", dtype=torch.bfloat16)
    assert getattr(opened, architecture_of(opened).denoiser).dtype is torch.bfloat16
