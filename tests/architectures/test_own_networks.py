"""Pipelines around the networks of vqcompress.models: planned, sampled, recorded, reopened."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from vqcompress.architectures import architecture_of, open_pipeline
from vqcompress.errors import ArchitectureError
from vqcompress.models.class_pipeline import ClassConditionalPipeline
from vqcompress.models.diffit_image import DiffiTImage
from vqcompress.models.dit import DiT
from vqcompress.models.dit_moe import DiTMoE
from vqcompress.models.flag_dit import FlagDiT
from vqcompress.models.lumina_pipeline import LuminaTextPipeline
from vqcompress.models.next_dit import NextDiT
from vqcompress.models.pt_dit import PTDiT
from vqcompress.models.pt_dit_pipeline import PTDiTPipeline

LABELLED = {"input_size": 8, "hidden_size": 32, "depth": 4, "num_heads": 2, "num_classes": 12}
CAPTIONED = {"dim": 48, "n_layers": 2, "n_heads": 4, "multiple_of": 16, "cap_feat_dim": 32}
PT_DIT = {
    "num_heads": 2, "head_dim": 24, "num_layers": 2, "cross_attention_dim": 48, "caption_channels": 32,
    "compress_ratios": (1, 2, 2), "proxy_compress_ratios": (1, 2, 2), "sample_size": 8,
}  # fmt: skip


def randomized(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return network.eval()


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 16), **blocks, latent_channels=4, norm_num_groups=4).eval()


def text() -> tuple[T5Tokenizer, T5EncoderModel]:
    torch.manual_seed(0)
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=12)
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    return tokenizer, T5EncoderModel(config).eval()


def labelled(network: nn.Module) -> DiffusionPipeline:
    return ClassConditionalPipeline.with_defaults(randomized(network), vae(), {7: "cock, rooster"})


PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {
    "dit": lambda: labelled(DiT(**LABELLED)),
    "moe": lambda: labelled(DiTMoE(**LABELLED, num_experts=4)),
    "next": lambda: LuminaTextPipeline(*text(), randomized(NextDiT(**CAPTIONED)), vae()),
    "flag": lambda: LuminaTextPipeline(*text(), randomized(FlagDiT(**CAPTIONED)), vae()),
    "pt_dit": lambda: PTDiTPipeline(*text(), randomized(PTDiT(**PT_DIT)), vae()),
}


@pytest.fixture(params=PIPELINES)
def pipeline(request: pytest.FixtureRequest) -> DiffusionPipeline:
    return PIPELINES[request.param]()


def sample(pipeline: DiffusionPipeline, which: slice = slice(None), **options) -> torch.Tensor:
    family = architecture_of(pipeline)
    prompts = ["7", "rooster"] if family.prompt_set == "imagenet" else ["a red cat", "b"]
    given = {"seeds": [3, 4][which], "steps": 2, "height": 16, "width": 16, "output_type": "latent"} | options
    return family.sample(pipeline, prompts[which], **given)


def test_every_matrix_is_planned(pipeline: DiffusionPipeline) -> None:
    plans = architecture_of(pipeline).layers(pipeline, "transformer")
    matrices = {name.removesuffix(".weight") for name, p in pipeline.transformer.named_parameters() if p.ndim > 1}
    assert {plan.name for plan in plans} == matrices
    quantized = {plan.name for plan in plans if plan.kept is None}
    assert all(name.split(".")[1].isdecimal() or name.startswith("caption_") for name in quantized), quantized
    assert len(quantized) > 8


def test_an_image_does_not_depend_on_its_batch(pipeline: DiffusionPipeline) -> None:
    both = sample(pipeline)
    assert torch.isfinite(both).all()
    torch.testing.assert_close(both[1:], sample(pipeline, slice(1, 2)), rtol=1e-3, atol=1e-3 * float(both.abs().max()))
    assert not torch.equal(sample(pipeline, guidance=1.0), both)
    assert sample(pipeline, output_type="pt").shape == (2, 3, 16, 16)


def test_folder_opens_to_the_same_images(pipeline: DiffusionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    opened = open_pipeline(tmp_path / "model")
    assert architecture_of(opened) == architecture_of(pipeline)
    assert torch.equal(sample(opened), sample(pipeline))


def test_gates_stay_in_float() -> None:
    pipeline = PIPELINES["moe"]()
    plans = {plan.name: plan.kept for plan in architecture_of(pipeline).layers(pipeline, "transformer")}
    assert all(plans[f"blocks.{index}.moe.gate"] for index in range(4))


def test_unconditional_image_space() -> None:
    network = DiffiTImage(image_size=16, widths=(32, 32), blocks=(1, 1), window=4)
    pipeline = ClassConditionalPipeline.with_defaults(randomized(network))
    family = architecture_of(pipeline)
    assert (family.defaults.height, family.name) == (16, "DiffiTImage")
    assert family.sample(pipeline, ["anything"], seeds=[0], steps=2, output_type="pt").shape == (1, 3, 16, 16)
    with pytest.raises(ArchitectureError, match="16x16 images only"):
        family.sample(pipeline, ["anything"], seeds=[0], height=32)
