"""Class-conditional sampling: each family's time and guidance, exactness on a known flow, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.models.class_pipeline import ClassConditionalPipeline
from vqcompress.models.diffit_image import DiffiTImage
from vqcompress.models.diffit_latent import DiffiTLatent
from vqcompress.models.dit import DiT, SiT
from vqcompress.models.dit_moe import DiTMoE
from vqcompress.models.mdt import MDTv1, MDTv2

TINY = {"input_size": 8, "hidden_size": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
IMAGE = {"image_size": 16, "widths": (32, 32), "blocks": (1, 1), "window": 4}


def vae() -> AutoencoderKL:
    block = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**block, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16)


def pipeline_of(network: nn.Module, scheduler: object, with_vae: bool = True, **more) -> ClassConditionalPipeline:
    pipeline = ClassConditionalPipeline(network.eval(), scheduler, vae().eval() if with_vae else None, **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


CASES = {
    "dit": (lambda: DiT(**TINY), DDIMScheduler),
    "dit-ddpm": (lambda: DiT(**TINY), lambda: DDPMScheduler(variance_type="learned_range")),
    "dit-no-sigma": (lambda: DiT(**TINY, learn_sigma=False), DDPMScheduler),
    "mdt_v1": (lambda: MDTv1(**TINY), DDIMScheduler),
    "mdt_v2": (lambda: MDTv2(**TINY, decode_layer=2), DDIMScheduler),
    "diffit_latent": (lambda: DiffiTLatent(**TINY), DDIMScheduler),
    "dit_moe": (lambda: DiTMoE(**TINY, num_experts=4), DDIMScheduler),
    "dit_moe_flow": (lambda: DiTMoE(**TINY, use_flash_attn=True), FlowMatchEulerDiscreteScheduler),
    "sit": (lambda: SiT(**TINY), FlowMatchEulerDiscreteScheduler),
}


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("case", CASES)
def test_every_family_samples_and_depends_on_its_label(case: str, guidance: float) -> None:
    torch.manual_seed(0)
    network, scheduler = CASES[case]
    pipeline = pipeline_of(network(), scheduler())
    runs = [
        pipeline([a, b], guidance, 3, [torch.Generator().manual_seed(7) for _ in range(2)], "latent").images
        for a, b in ((1, 2), (1, 3))
    ]
    assert runs[0].shape == (2, 4, 8, 8)
    assert torch.isfinite(runs[0]).all()
    assert torch.allclose(runs[0][0], runs[1][0], atol=1e-4)
    assert not torch.allclose(runs[0][1], runs[1][1], atol=1e-4)


def test_images_through_the_vae() -> None:
    torch.manual_seed(0)
    pipeline = pipeline_of(DiT(**TINY), DDIMScheduler())
    assert pipeline([0], 1.0, 2).images[0].size == (16, 16)
    assert pipeline([0], 1.0, 2, output_type="pt").images.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("classes", [None, 4])
def test_image_space(classes: int | None) -> None:
    torch.manual_seed(0)
    pipeline = pipeline_of(DiffiTImage(**IMAGE, num_classes=classes), EDMEulerScheduler(), with_vae=False)
    image = pipeline([1], 2.0, 3, output_type="pt").images
    assert image.shape == (1, 3, 16, 16)
    assert torch.isfinite(image).all()


class Straight:
    """A network whose velocity is exact: from any point on the straight path to the given data."""

    def __init__(self, network: nn.Module, data: Tensor, towards_data: bool):
        self.times: list[float] = []

        def forward(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            self.times.append(float(t[0]))
            left = 1 - t[0] if towards_data else t[0]
            velocity = (x - data) / left
            return -velocity if towards_data else torch.cat([velocity, torch.zeros_like(velocity)], dim=1)

        network.forward = forward


@pytest.mark.parametrize("make", [lambda: SiT(**TINY), lambda: DiTMoE(**TINY)])
def test_a_straight_flow_ends_on_the_data(make) -> None:
    network, data = make(), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    straight = Straight(network, data, towards_data=isinstance(network, SiT))
    out = pipeline_of(network, FlowMatchEulerDiscreteScheduler())([0], 1.0, 4, output_type="latent").images
    assert torch.allclose(out, data, atol=1e-5)
    expected = [0, 0.25, 0.5, 0.75] if isinstance(network, SiT) else [1, 0.75, 0.5, 0.25]
    assert straight.times == pytest.approx(expected)


def test_ddim_recovers_data_from_exact_noise() -> None:
    network, scheduler = DiT(**TINY), DDIMScheduler(clip_sample=False)
    data = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def forward(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha = scheduler.alphas_cumprod[t.long()].view(-1, 1, 1, 1)
        return torch.cat([(x - alpha.sqrt() * data) / (1 - alpha).sqrt()] * 2, dim=1)

    network.forward = forward
    out = pipeline_of(network, scheduler)([0], 1.0, 20, output_type="latent").images
    # The last step stops a thousandth of noise short of the data.
    assert torch.allclose(out, data, atol=0.1)


@pytest.mark.parametrize(
    ("network", "scheduler"),
    [
        (lambda: DiT(**TINY), DDIMScheduler),
        (lambda: SiT(**TINY), FlowMatchEulerDiscreteScheduler),
        (lambda: DiTMoE(**TINY), DDIMScheduler),
        (lambda: DiTMoE(**TINY, use_flash_attn=True), FlowMatchEulerDiscreteScheduler),
        (lambda: DiffiTImage(**IMAGE), EDMEulerScheduler),
    ],
)
def test_default_schedulers(network, scheduler: type) -> None:
    assert type(ClassConditionalPipeline.with_defaults(network()).scheduler) is scheduler


@pytest.mark.parametrize(
    ("network", "guidance"),
    [
        (lambda: DiT(**TINY), 4.0),
        (lambda: DiT(**TINY, class_dropout_prob=0.0), 1.0),
        (lambda: DiTMoE(**TINY, use_flash_attn=True), 7.0),
        (lambda: DiffiTLatent(**TINY), 4.4),
        (lambda: DiffiTLatent(**TINY | {"input_size": 64, "patch_size": 8}), 1.49),
        (lambda: DiffiTImage(**IMAGE), 1.0),
    ],
)
def test_default_guidance(network, guidance: float) -> None:
    assert ClassConditionalPipeline.with_defaults(network()).default_guidance == guidance


def test_labels_and_guidance_are_checked() -> None:
    pipeline = pipeline_of(
        DiT(**TINY, class_dropout_prob=0.0), DDIMScheduler(), with_vae=False, id2label={0: "cat, puss"}
    )
    assert pipeline.labels == {"cat": 0, "puss": 0}
    with pytest.raises(ArchitectureError, match="classes 0 to 4"):
        pipeline([5])
    with pytest.raises(ArchitectureError, match="null label"):
        pipeline([0], 4.0)
    with pytest.raises(ArchitectureError, match="latent"):
        pipeline([0], 1.0, 1)


def test_save_and_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipeline = pipeline_of(MDTv2(**TINY, decode_layer=2), DDIMScheduler(), id2label={0: "cat"})
    pipeline.save_pretrained(tmp_path)
    again = ClassConditionalPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    make = [p([0], 4.0, 2, torch.Generator().manual_seed(0), "latent").images for p in (pipeline, again)]
    assert make[0].equal(make[1])
    assert again.labels == {"cat": 0}
