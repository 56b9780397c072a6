"""Published configurations on the meta device: what would be quantized of the real models, nothing allocated."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn

from vqcompress.architectures import Architecture, LayerPlan
from vqcompress.architectures.dit import DiTArchitecture
from vqcompress.architectures.pixart import PixArtArchitecture
from vqcompress.architectures.published import PUBLISHED
from vqcompress.architectures.published_skeleton import published_skeleton
from vqcompress.architectures.unet import UNetArchitecture
from vqcompress.models.hub_pipelines import HUB_PIPELINES
from vqcompress.models.presets import SDXL_UNET
from vqcompress.sampling_config import ResolvedSampling

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
PIXART = {"sample_size": 128, "cross_attention_dim": 1152, "caption_channels": 4096}
CASES = [
    pytest.param(UNetArchitecture, UNet2DConditionModel, SDXL_UNET, 2_567_463_684, 743, 51, 0.989, id="sdxl"),
    pytest.param(UNetArchitecture, UNet2DConditionModel, SD15, 859_520_964, 184, 98, 0.967, id="sd15"),
    pytest.param(DiTArchitecture, DiTTransformer2DModel, {"out_channels": 8}, 749_826_464, 254, 1, 0.892, id="dit"),
    pytest.param(PixArtArchitecture, PixArtTransformer2DModel, PIXART, 611_349_152, 290, 1, 0.983, id="pixart"),
]


def plans_of(family: type[Architecture], denoiser: nn.Module) -> list[LayerPlan]:
    name = "unet" if family is UNetArchitecture else "transformer"
    architecture = family("test", name, (name,), ResolvedSampling(1, 1.0, 8, 8))
    return architecture.layers(SimpleNamespace(**{name: denoiser}), name)


@pytest.mark.parametrize(("family", "network", "config", "parameters", "linears", "convolutions", "share"), CASES)
def test_what_is_quantized(
    family: type[Architecture],
    network: type[nn.Module],
    config: dict,
    parameters: int,
    linears: int,
    convolutions: int,
    share: float,
) -> None:
    with torch.device("meta"):
        denoiser = network(**config)
    assert sum(p.numel() for p in denoiser.parameters()) == parameters
    modules = list(denoiser.modules())
    assert sum(isinstance(m, nn.Linear) for m in modules) == linears
    assert sum(isinstance(m, nn.Conv2d) for m in modules) == convolutions
    plans = plans_of(family, denoiser)
    matrices = sum(p.numel() for p in denoiser.parameters() if p.ndim > 1)
    assert sum(torch.Size(plan.shape).numel() for plan in plans) == matrices
    quantized = sum(torch.Size(plan.shape).numel() for plan in plans if plan.reason is None)
    assert quantized / parameters == pytest.approx(share, abs=0.001)
    assert all(torch.Size(plan.shape).numel() % 16 == 0 for plan in plans if plan.reason is None)


@pytest.mark.parametrize(
    ("name", "steps", "guidance", "side"),
    [
        ("sdxl", 50, 5.0, 1024),
        ("sdxl-turbo", 4, 0.0, 512),
        ("linfusion-sdxl", 50, 5.0, 1024),
        ("sd15", 50, 7.5, 512),
        ("dit-xl-2-512", 50, 4.0, 512),
        ("pixart-alpha", 20, 4.5, 1024),
        ("lumina-next-t2i", 30, 4.0, 1024),
        ("diffit-512", 50, 1.49, 512),
        ("diffit-image-64", 50, 1.0, 64),
        ("dit-moe-g-16e2a", 50, 7.0, 256),
    ],
)
def test_a_plan_samples_as_the_pipeline_would(name: str, steps: int, guidance: float, side: int) -> None:
    assert published_skeleton(name).architecture.defaults == ResolvedSampling(steps, guidance, side, side)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in HUB_PIPELINES])
def test_every_plan_has_a_size(name: str) -> None:
    """Without one a forecast counts calls of a single sample, and says hours where it should say months."""
    defaults = published_skeleton(name).architecture.defaults
    assert min(defaults.height, defaults.width) >= 32
