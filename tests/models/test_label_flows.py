"""Flag-DiT, Next-DiT and Large-DiT with labels in the class-conditional pipeline: their times and schedulers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from vqcompress.models.class_pipeline import ClassConditionalPipeline
from vqcompress.models.flag_dit import FlagDiTLabels, LargeDiT
from vqcompress.models.next_dit import NextDiTLabels

SMALL = {"dim": 48, "n_layers": 2, "n_heads": 4, "multiple_of": 16, "num_classes": 10, "qk_norm": True}
SCHEDULERS = {
    FlagDiTLabels: FlowMatchEulerDiscreteScheduler,
    NextDiTLabels: FlowMatchEulerDiscreteScheduler,
    LargeDiT: DDIMScheduler,
}


def pipeline_of(network: type) -> ClassConditionalPipeline:
    generator, built = torch.Generator().manual_seed(3), network(**SMALL).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    pipeline = ClassConditionalPipeline.with_defaults(built)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sampled(pipeline: ClassConditionalPipeline, label: int, **arguments) -> Tensor:
    given = {"guidance_scale": 4.0, "num_inference_steps": 2, "output_type": "latent", **arguments}
    return pipeline([label], generator=torch.Generator().manual_seed(0), **given).images


@pytest.mark.parametrize("network", SCHEDULERS)
def test_labels_are_drawn_with_the_trained_scheduler(network: type, tmp_path: Path) -> None:
    pipeline = pipeline_of(network)
    assert type(pipeline.scheduler) is SCHEDULERS[network]
    latents = sampled(pipeline, 1)
    assert latents.shape == (1, 4, 32, 32)
    assert not torch.allclose(latents, sampled(pipeline, 2), atol=1e-4)
    pipeline.save_pretrained(tmp_path)
    opened = ClassConditionalPipeline.from_pretrained(tmp_path)
    opened.set_progress_bar_config(disable=True)
    assert sampled(opened, 1).equal(latents)


@pytest.mark.parametrize("network", [FlagDiTLabels, NextDiTLabels])
def test_flows_run_from_noise_at_0_to_data_at_1(network: type) -> None:
    pipeline, seen = pipeline_of(network), []
    data = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(8))

    def forward(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x, t, _ = given
        seen.append(float(t[0]))
        return (data - x) / (1 - t[0])

    pipeline.transformer.register_forward_hook(forward)
    latents = sampled(pipeline, 1, guidance_scale=1.0, num_inference_steps=4)
    torch.testing.assert_close(latents, data, rtol=1e-4, atol=1e-4)
    assert seen == pytest.approx([0, 0.25, 0.5, 0.75])
