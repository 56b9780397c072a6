"""A LinFusion pipeline is a UNet pipeline: its new matrices are planned, packed and reopened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import vqcompress
from vqcompress.architectures import architecture_of
from vqcompress.models.linfusion import LinFusionUNet2DConditionModel
from vqcompress.sampling_config import SamplingConfig

Own = Callable[[str], DiffusionPipeline]


def test_all_of_the_linear_attention_is_quantized(own: Own) -> None:
    pipeline = own("linfusion")
    plans = architecture_of(pipeline).layers(pipeline, "unet")
    of_attention = {plan.name: plan.reason for plan in plans if ".attn1." in plan.name}
    assert len(of_attention) == 4 * 8
    assert {name.split(".attn1.")[1] for name in of_attention} == {
        "to_q", "to_k", "to_v", "to_out.0", "to_q_.0", "to_q_.3", "to_k_.0", "to_k_.3",
    }  # fmt: skip
    assert not any(of_attention.values())


def test_packed_folder_opens_and_draws_the_same(own: Own, tmp_path: Path) -> None:
    pipeline = own("linfusion")
    vqcompress.quantize(pipeline, tmp_path / "packed", method="rtn", bits=4)
    opened = DiffusionPipeline.from_pretrained(tmp_path / "packed")
    assert isinstance(opened.unet, LinFusionUNet2DConditionModel)
    assert opened.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_k_[3].weight.dtype == torch.int8
    size = {"sampling": SamplingConfig(2, height=16, width=16), "output_type": "latent"}
    first, second = (architecture_of(p).sample(p, ["a cat"], seeds=[1], **size) for p in (pipeline, opened))
    assert first.equal(second)
