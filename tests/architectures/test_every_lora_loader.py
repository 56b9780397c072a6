"""Every LoRA loader of diffusers, on a packed pipeline of each package that uses it: loads, counts, leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import lora_pipeline
from torch import Tensor, nn

import vqcompress
from tests.architectures.every_pipeline import (
    UNDRIVEN,
    UNPUBLISHED,
    build,
    draw,
    latents,
    package,
    pipeline_classes,
    side,
)
from vqcompress.architectures import architecture_of
from vqcompress.architectures.roles import REFUSALS
from vqcompress.layers import vq_layers

LOADERS = [kind for name, kind in vars(lora_pipeline).items() if name.endswith("LoraLoaderMixin")]
WITHOUT_CASE = {
    *("AnimaLoraLoaderMixin", "AceStepLoraLoaderMixin", "MiniMaxH3LoraLoaderMixin", "RFD4ProteinaLoraLoaderMixin"),
    *("AmusedLoraLoaderMixin", "LoraLoaderMixin"),  # deprecated
    *("CosmosLoraLoaderMixin", "Flux3LoraLoaderMixin"),  # no pipeline that is driven here
    "HiDreamImageLoraLoaderMixin",  # its pipeline draws a megapixel unless it is told otherwise
}
CANNOT_LOAD = {"kandinsky3", "prx"}  # in diffusers itself: the loader wants a `unet` that can load adapters


def one_of_each() -> dict[str, type[DiffusionPipeline]]:
    """Name of a loader and a package -> the pipeline class with the shortest name that has both."""
    found: dict[str, type[DiffusionPipeline]] = {}
    for name, kind in sorted(pipeline_classes().items(), key=lambda item: len(item[0])):
        loader = next((loader.__name__ for loader in LOADERS if loader in kind.__mro__), None)
        left_out = name in UNDRIVEN or package(kind) in CANNOT_LOAD or any(part in name for part in UNPUBLISHED)
        if loader is not None and not left_out:
            found.setdefault(f"{loader.removesuffix('LoraLoaderMixin')}, {package(kind)}", kind)
    return found


CASES = one_of_each()


def lora(component: str, name: str, layer: nn.Linear) -> dict[str, Tensor]:
    """Of rank 2 on one layer, as files of diffusers name it."""
    rows, columns = layer.out_features, layer.in_features
    made = torch.Generator().manual_seed(0)
    return {
        f"{component}.{name}.lora_A.weight": torch.randn(2, columns, generator=made),
        f"{component}.{name}.lora_B.weight": torch.randn(rows, 2, generator=made),
    }


@torch.no_grad()
def fill_zeros(pipeline: DiffusionPipeline) -> None:
    """Some networks begin with an output of zeros, whatever their layers do."""
    torch.manual_seed(0)
    for part in pipeline.components.values():
        for parameter in part.parameters() if isinstance(part, nn.Module) else ():
            if not parameter.any():
                parameter.normal_(std=0.1)


def attention(packed: dict[str, Any]) -> str:
    """A layer that people's LoRA train, and that every call reaches: the first query, else the first Linear."""
    linear = [name for name, layer in packed.items() if isinstance(layer, nn.Linear)]
    return next((name for name in linear if "q" in name.rsplit(".", 2)[-1]), linear[0])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_a_lora_loads_counts_and_leaves_no_trace(case: str, tmp_path: Path) -> None:
    try:
        pipeline = build(CASES[case])
        fill_zeros(pipeline)
        family = architecture_of(pipeline)
        before_packing = latents(draw(family, pipeline))
    except REFUSALS as problem:
        pytest.skip(f"no tiny pipeline: {problem}")
    (tmp_path / "prompts.txt").write_text("a cat\n", encoding="utf-8")
    settings = {"count": 1, "steps": 2, "height": side(pipeline), "width": side(pipeline), "batch_size": 1}
    vqcompress.quantize(
        pipeline, tmp_path / "out", method="rtn", bits=4, budget="layer", prompts=tmp_path / "prompts.txt",
        calibration=settings,
    )  # fmt: skip
    component = family.denoiser
    packed = vq_layers(getattr(pipeline, component))
    name = attention(packed)
    before = latents(draw(family, pipeline))
    assert not all(map(torch.equal, before, before_packing))
    pipeline.load_lora_weights(lora(component, name, packed[name]), adapter_name="style")
    assert not all(map(torch.equal, latents(draw(family, pipeline)), before)), (
        f"{component}.{name}: the LoRA has no effect"
    )
    pipeline.disable_lora()
    assert all(map(torch.equal, latents(draw(family, pipeline)), before))
    pipeline.unload_lora_weights()
    assert all(map(torch.equal, latents(draw(family, pipeline)), before))
    assert vq_layers(getattr(pipeline, component)).keys() == packed.keys()


def test_every_loader_of_images_and_videos_has_a_case() -> None:
    covered = {case.split(",")[0] + "LoraLoaderMixin" for case in CASES}
    assert {kind.__name__ for kind in LOADERS} - covered <= WITHOUT_CASE
