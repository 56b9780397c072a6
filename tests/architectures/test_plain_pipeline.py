"""Pipelines that were changed after loading are refused before calibration; the named call undoes the change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig
from torch import nn

import vqcompress
from tests.architectures import own_pipelines, tiny_pipelines
from vqcompress.architectures import architecture_of
from vqcompress.architectures.plain_pipeline import refuse_changed
from vqcompress.errors import ArchitectureError

LORA = LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False)


def with_adapter(pipeline: Any) -> None:
    pipeline.unet.add_adapter(LORA)


def with_fused_adapter(pipeline: Any) -> None:
    pipeline.unet.add_adapter(LORA)
    pipeline.unet.fuse_lora()


def with_text_adapter(pipeline: Any) -> None:
    pipeline.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))


def unfused_but_left(pipeline: Any) -> None:
    pipeline.fuse_qkv_projections()
    pipeline.unfuse_qkv_projections()


def offloaded_by_group(pipeline: Any) -> None:
    cpu = torch.device("cpu")
    apply_group_offloading(pipeline.unet, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def cast_by_layer(pipeline: Any) -> None:
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def compiled(pipeline: Any) -> None:
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")


def without(name: str) -> Callable[[Any], None]:
    return lambda pipeline: setattr(pipeline, name, None)


REFUSED = [
    (with_adapter, "unet has an adapter.*unload_lora_weights.*bake-lora"),
    (with_fused_adapter, "unet has a fused adapter.*unload_lora_weights.*unfuse_lora"),
    (with_text_adapter, "text_encoder has an adapter.*unload_lora_weights"),
    (lambda pipeline: pipeline.fuse_qkv_projections(), "unet has fused projections.*load the pipeline again"),
    (unfused_but_left, "unet has fused projections.*load the pipeline again"),
    (lambda pipeline: pipeline.enable_sequential_cpu_offload(device="cpu"), "unet is offloaded.*remove_all_hooks"),
    (offloaded_by_group, "unet has hooks.*group_offloading.*load the pipeline again"),
    (cast_by_layer, "layerwise_casting"),
    (compiled, r"unet is compiled: pipeline\.unet = pipeline\.unet\._orig_mod"),
    (lambda pipeline: pipeline.unet.compile(backend="eager"), "unet is compiled in place"),
    (without("text_encoder"), "no text_encoder.*without text_encoder=None"),
    (without("vae"), "no VAE"),
    (lambda pipeline: pipeline.vae.add_module("lent", pipeline.unet.conv_in), "vae shares 1 layers with unet"),
    (lambda pipeline: pipeline.unet.conv_out.add_module("extra", nn.Linear(2, 2)), r"other tensors.*conv_out\.extra"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused_in_one_line_before_anything(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    pipeline = tiny_pipelines.sd15()
    change(pipeline)
    with pytest.raises(ArchitectureError, match=message) as caught:
        vqcompress.quantize(pipeline, tmp_path / "out", method="rtn", bits=4.0)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def undone(change: Callable[[Any], None], undo: Callable[[Any], None]) -> None:
    pipeline = tiny_pipelines.sd15()
    change(pipeline)
    undo(pipeline)
    refuse_changed(pipeline, ["unet", "text_encoder"])


def test_the_named_calls_undo_the_change() -> None:
    undone(with_adapter, lambda pipeline: pipeline.unload_lora_weights())
    undone(with_text_adapter, lambda pipeline: pipeline.unload_lora_weights())
    undone(lambda pipeline: pipeline.enable_sequential_cpu_offload(device="cpu"), lambda p: p.remove_all_hooks())
    undone(compiled, lambda pipeline: setattr(pipeline, "unet", pipeline.unet._orig_mod))


def test_a_fused_adapter_stays_fused_when_it_is_unloaded() -> None:
    pipeline = tiny_pipelines.sd15()
    before = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.clone()
    with_fused_adapter(pipeline)
    pipeline.unload_lora_weights()
    refuse_changed(pipeline, ["unet"])
    assert not before.equal(pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight)


def test_transformers_unfuse_themselves() -> None:
    pipeline = tiny_pipelines.flux()
    pipeline.transformer.fuse_qkv_projections()
    with pytest.raises(ArchitectureError, match=r"pipeline\.transformer\.unfuse_qkv_projections\(\)"):
        refuse_changed(pipeline, ["transformer"])
    pipeline.transformer.unfuse_qkv_projections()
    refuse_changed(pipeline, ["transformer"])


def test_sd3_runs_without_t5() -> None:
    pipeline = tiny_pipelines.sd3()
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    refuse_changed(pipeline, ["transformer"])
    pipeline.text_encoder_2 = None
    with pytest.raises(ArchitectureError, match="no text_encoder_2"):
        refuse_changed(pipeline, ["transformer"])


@pytest.mark.parametrize("name", [*tiny_pipelines.TINY, *own_pipelines.OWN])
def test_pipelines_as_they_are_loaded_pass(name: str) -> None:
    pipeline: DiffusionPipeline = (tiny_pipelines.TINY | own_pipelines.OWN)[name]()
    refuse_changed(pipeline, architecture_of(pipeline).components)
