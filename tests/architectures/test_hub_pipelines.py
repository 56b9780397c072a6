"""Pipelines on the Hub by name: their networks have as many parameters as was published, and plans are whole."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from vqcompress.architectures.published_skeleton import Skeleton, published_skeleton
from vqcompress.models import hub_parts
from vqcompress.models.hub_parts import HubPart
from vqcompress.models.hub_pipelines import DENOISERS, HUB_PIPELINES

# What model cards and papers call the size of one denoiser, in thousands of millions, with as many digits as they give.
# FLUX.3 [klein] is said to have 5.6 with its autoencoder of 0.084. The two experts of Wan 2.2 have 14 each, of which
# one runs at a time. No size was published for the denoisers of SDXL's refiner, inpainting and Lightning.
ADVERTISED = {
    "flux-dev": "12", "flux-schnell": "12", "flux-kontext": "12", "flux2-dev": "32", "flux2-klein": "4",
    "flux2-klein-9b": "9", "sd35-large": "8.1", "sd3-medium": "2", "qwen-image": "20", "qwen-image-edit": "20",
    "z-image-turbo": "6", "wan22-t2v-a14b": "14", "wan22-i2v-a14b": "14", "wan22-ti2v-5b": "5", "ltx2": "19",
    "hunyuan-video-15": "8.3", "hunyuan-image": "17", "chroma": "8.9", "sana": "1.6", "krea2": "13",
    "pixart-sigma": "0.6", "lumina-image-2": "2.6", "kolors": "2.6", "ssd-1b": "1.3", "sdxl-lightning": "2.6",
    "sdxl-inpaint": "2.6",
}  # fmt: skip

# Bytes of the denoiser's files on the Hub, and bytes a number there. Buffers that are stored count: the positions of
# Stable Diffusion 3.5.
FILES = {
    "sd35-large": (16.30e9, 2),
    "sd35-medium": (4.94e9, 2),
    "chroma": (17_800_087_752, 2),
    "pixart-sigma": (2_443_492_488, 4),
    "ssd-1b": (5.33e9, 4),
}
PARTS = {id(part): name for name, part in vars(hub_parts).items() if isinstance(part, HubPart)}
CODED_AT_LEAST = 0.95


def networks_of(found: Skeleton) -> Iterator[tuple[str, nn.Module]]:
    yield from ((name, part) for name, part in found.pipeline.components.items() if isinstance(part, nn.Module))


@pytest.fixture(scope="module", params=HUB_PIPELINES)
def named(request: pytest.FixtureRequest) -> tuple[str, Skeleton]:
    return request.param, published_skeleton(request.param)


def test_a_pipeline_has_the_parameters_that_were_published(named: tuple[str, Skeleton]) -> None:
    name, found = named
    row, denoisers = HUB_PIPELINES[name], []
    for part, network in networks_of(found):
        assert all(parameter.is_meta for parameter in network.parameters())
        assert sum(parameter.numel() for parameter in network.parameters()) == row.networks[part].parameters, part
        denoisers += [network] * (part in DENOISERS)
    assert row.parameters == sum(p.numel() for network in denoisers for p in network.parameters())
    assert len(denoisers) == len(found.architecture.denoisers)
    if said := ADVERTISED.get(name):
        digits = len(said.partition(".")[2])
        assert f"{sum(p.numel() for p in denoisers[0].parameters()) / 1e9:.{digits}f}" == said
    if name in FILES:
        size, width = FILES[name]
        stored = sum(tensor.numel() for tensor in denoisers[0].state_dict().values())
        assert width * stored == pytest.approx(size, rel=2e-3)


def test_its_plan_is_whole(named: tuple[str, Skeleton]) -> None:
    name, found = named
    for part in found.architecture.denoisers:
        network = found.architecture.module(found.pipeline, part)
        plans = found.architecture.layers(found.pipeline, part)
        matrices = {n.removesuffix(".weight") for n, p in network.named_parameters() if p.ndim > 1}
        assert {plan.name for plan in plans} == matrices
        coded = sum(math.prod(plan.shape) for plan in plans if plan.reason is None)
        assert coded > CODED_AT_LEAST * sum(p.numel() for p in network.parameters())
    sampling = found.architecture.defaults
    assert sampling == HUB_PIPELINES[name].sampling
    assert sampling.steps > 1
    assert sampling.height % 16 == sampling.width % 16 == 0


# What stays dense of a text encoder or an autoencoder, beside what is no matrix of a Linear or a Conv2d.
KEPT = {
    "T5_XXL": set(), "UMT5_XXL": set(), "BYT5_GLYPHS": set(), "CLIP_L": set(), "CLIP_L_PROJECTED": {"text_projection"},
    "CLIP_G": {"text_projection"}, "GEMMA2_2B": set(), "QWEN3_4B": set(), "QWEN25_VL_7B_TEXT": set(),
    "QWEN3_8B_CAUSAL": {"lm_head"}, "CHATGLM3_6B": {"output_layer"},
    "VAE_SDXL": {"encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out"},
    "VAE_FLUX2": {
        "encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out", "quant_conv", "post_quant_conv"
    },
    "VAE_FLUX": {"encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out"},
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_stays_dense_of_text_encoders_and_autoencoders(name: str) -> None:
    pipeline = next(p for p in HUB_PIPELINES if any(PARTS[id(part)] == name for part in _beside(p)))
    found = published_skeleton(pipeline)
    component = next(k for k, part in HUB_PIPELINES[pipeline].networks.items() if PARTS.get(id(part)) == name)
    plans = found.architecture.layers(found.pipeline, component)
    reasons = {plan.name: plan.reason for plan in plans if plan.reason is not None}
    no_matrix = re.compile(r"^(only|a bare|shares)|is neither a Linear")
    ruled = {layer for layer, reason in reasons.items() if not no_matrix.search(reason)}
    assert ruled == KEPT[name]
    matrices = sum(math.prod(plan.shape) for plan in plans if "mbedding" not in (plan.reason or ""))
    coded = sum(math.prod(plan.shape) for plan in plans if plan.reason is None)
    assert coded > (0.85 if ruled & {"lm_head", "output_layer"} else 0.95) * matrices


def _beside(name: str) -> list[HubPart]:
    return [part for part in HUB_PIPELINES[name].networks.values() if id(part) in PARTS]


@pytest.mark.parametrize(("name", "vision"), [("qwen-image", "visual"), ("flux2-dev", "vision_tower")])
def test_what_reads_images_stays_dense(name: str, vision: str) -> None:
    found = published_skeleton(name)
    plans = found.architecture.layers(found.pipeline, "text_encoder")
    seen = [plan for plan in plans if f"{vision}." in plan.name]
    assert seen
    assert all(plan.reason for plan in seen)
    coded = sum(math.prod(plan.shape) for plan in plans if plan.reason is None)
    assert coded > 0.75 * sum(torch.Size(plan.shape).numel() for plan in plans)
