"""Our class-conditional networks from plan to a compressed folder that loads bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

import vqcompress
from vqcompress.architectures import architecture_of
from vqcompress.errors import ArchitectureError
from vqcompress.models.class_pipeline import ClassConditionalPipeline
from vqcompress.models.diffit_image import DiffiTImage
from vqcompress.models.diffit_latent import DiffiTLatent
from vqcompress.models.dit import DiT, SiT
from vqcompress.models.dit_moe import DiTMoE
from vqcompress.models.mdt import MDTv1, MDTv2
from vqcompress.sampling_config import SamplingConfig

SMALL = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 4}
NETWORKS = {
    "dit": lambda: DiT(**SMALL),
    "sit": lambda: SiT(**SMALL),
    "mdt_v1": lambda: MDTv1(**SMALL, decode_layer=1),
    "mdt_v2": lambda: MDTv2(**SMALL | {"depth": 3}, decode_layer=1),
    "dit_moe": lambda: DiTMoE(**SMALL, num_experts=4),
    "dit_moe_flow": lambda: DiTMoE(**SMALL, num_experts=4, use_flash_attn=True),
    "diffit_latent": lambda: DiffiTLatent(**SMALL),
    "diffit_image": lambda: DiffiTImage(8, widths=(32, 32), blocks=(1, 1), window=4),
}


@pytest.fixture(params=NETWORKS)
def pipeline(request: pytest.FixtureRequest) -> ClassConditionalPipeline:
    torch.manual_seed(0)
    pipeline = ClassConditionalPipeline.with_defaults(NETWORKS[request.param]().eval(), id2label={0: "cat", 1: "dog"})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline: DiffusionPipeline, prompts: tuple[str, ...] = ("cat", "3")) -> torch.Tensor:
    return architecture_of(pipeline).sample(
        pipeline, prompts, seeds=range(len(prompts)), sampling=SamplingConfig(2), output_type="latent"
    )


def test_every_matrix_is_planned_and_blocks_are_quantized(pipeline: ClassConditionalPipeline) -> None:
    plans = {p.name: p.reason for p in architecture_of(pipeline).layers(pipeline, "transformer")}
    matrices = {n.removesuffix(".weight") for n, p in pipeline.transformer.named_parameters() if p.ndim > 1}
    assert plans.keys() == matrices
    modules = dict(pipeline.transformer.named_modules())
    dense = [n for n, kept in plans.items() if kept and isinstance(modules.get(n), nn.Linear | nn.Conv2d)]
    assert all(n.startswith(("x_embedder", "t_embedder", "final_layer", "tokenizer", "head")) for n in dense)


def test_names_and_numbers(pipeline: ClassConditionalPipeline) -> None:
    assert latents(pipeline, ("cat", "1")).equal(latents(pipeline, ("0", "dog")))
    if pipeline.num_classes is not None:
        with pytest.raises(ArchitectureError, match="no class of this model"):
            latents(pipeline, ("4",))


def test_other_sizes_are_refused(pipeline: ClassConditionalPipeline) -> None:
    with pytest.raises(ArchitectureError, match="8x8 images only"):
        architecture_of(pipeline).sample(pipeline, ["0"], seeds=[0], sampling=SamplingConfig(height=16))


def test_compressed_folder_loads_bit_for_bit(pipeline: ClassConditionalPipeline, tmp_path: Path) -> None:
    prompts = tmp_path / "classes.txt"
    prompts.write_text("0\n1\n2\n3\n")
    calibration = {"prompts": str(prompts), "count": 4, "steps": 2}
    folder = vqcompress.quantize(pipeline, tmp_path / "packed", bits=3.0, method="rtn", calibration=calibration)
    loaded = vqcompress.load(folder)
    loaded.set_progress_bar_config(disable=True)
    assert latents(loaded).equal(latents(pipeline))
    assert vqcompress.verify(folder) == []
    plain = DiffusionPipeline.from_pretrained(folder)
    assert type(plain.transformer) is type(pipeline.transformer)
