"""What a user may ask for, what this machine has, and which weights wait on the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.architectures import tiny_pipelines
from vqcompress.architectures.stored_dtype import dtype_of_entries, stored_dtype
from vqcompress.bundling import write_bundle
from vqcompress.checkpoint import load
from vqcompress.errors import RecipeError
from vqcompress.placement import Placement, with_offload
from vqcompress.placement.machine import ACCELERATORS, device_memory, first_accelerator, why_absent

ABSENT = next((kind for kind in ACCELERATORS if why_absent(kind)), None)
NEEDS_ABSENT = pytest.mark.skipif(ABSENT is None, reason="this machine has every kind of accelerator")


def test_auto_takes_the_accelerator_or_else_the_cpu() -> None:
    found = Placement.parse()
    assert found.device.type == (first_accelerator() or "cpu")
    assert (found.dtype, found.offload) == (None, "auto")
    assert Placement.parse(None, None, None) == found
    assert Placement.parse(found) is found


@NEEDS_ABSENT
def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(RecipeError, match=f"device '{ABSENT}' is not here"):
        Placement.parse(ABSENT)


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:-1", "cpu:x", "CUDA", "0", "gpu"])
def test_a_device_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="unknown device"):
        Placement.parse(name)


def test_a_number_beyond_the_last_device_is_refused() -> None:
    with pytest.raises(RecipeError, match="this machine has 1 of cpu"):
        Placement.parse("cpu:7")


@pytest.mark.parametrize(("dtype", "offload"), [("float8", "auto"), ("int8", "auto"), ("auto", "disk")])
def test_words_that_nothing_is_called_by_are_refused(dtype: str, offload: str) -> None:
    with pytest.raises(RecipeError, match="is not one of"):
        Placement.parse("cpu", dtype, offload)


@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_offloading_to_where_it_computes_is_refused(offload: str) -> None:
    with pytest.raises(RecipeError, match="computes on the host"):
        Placement.parse("cpu", "auto", offload)


def test_dtypes_by_name_and_by_themselves() -> None:
    assert Placement.parse("cpu", "bfloat16").dtype == torch.bfloat16
    assert Placement.parse("cpu", torch.float16).dtype == torch.float16


def test_auto_is_float32_on_the_cpu_and_the_checkpoints_elsewhere() -> None:
    assert Placement.parse("cpu").opening_dtype == torch.float32
    there = Placement(torch.device("cuda:0"))
    assert there.opening_dtype is None
    assert replace(there, dtype=torch.float16).opening_dtype == torch.float16


def test_the_sentence_names_the_device_and_its_memory() -> None:
    memory = device_memory(torch.device("cpu"))
    assert Placement.parse("cpu").sentence() == f"cpu ({memory.name}, {memory.total / 1e9:.3g} GB), float32"
    assert 0 < memory.free <= memory.total


@pytest.mark.parametrize(
    ("free", "chosen"),
    # of 6 kB in all and 4 kB in the largest network, 0.8 of what is free must hold all, or the largest
    [(7500, "none"), (7400, "model"), (5000, "model"), (4900, "group")],
)
def test_what_does_not_fit_is_offloaded_component_by_component_or_streamed(free: int, chosen: str) -> None:
    parts = {"unet": nn.Linear(1000, 1, bias=False), "vae": nn.Linear(500, 1, bias=False), "scheduler": object()}
    pipeline = SimpleNamespace(components=parts)
    there = Placement(torch.device("cuda:0"), memory=free)
    assert with_offload(there, pipeline).offload == chosen
    assert with_offload(replace(there, offload="sequential"), pipeline).offload == "sequential"
    assert with_offload(Placement(memory=0), pipeline).offload == "none"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_checkpoints_dtype_is_that_of_its_denoiser(dtype: torch.dtype, tmp_path: Path) -> None:
    pipeline = tiny_pipelines.sd15()
    pipeline.unet.to(dtype)
    pipeline.save_pretrained(tmp_path)
    assert stored_dtype(tmp_path) == dtype


class AsStored(Placement):
    """On the host, and in the checkpoint's dtype as on an accelerator."""

    opening_dtype = None


def test_a_bundle_opens_in_the_dtype_of_its_denoiser(tmp_path: Path) -> None:
    pipeline = tiny_pipelines.sd15()
    pipeline.unet.to(torch.bfloat16)
    pipeline.save_pretrained(tmp_path / "folder")
    bundle = write_bundle(tmp_path / "folder", tmp_path / "one.safetensors")
    assert load(bundle, checked=False, device=AsStored()).unet.dtype == torch.bfloat16


def test_the_scales_of_packed_layers_say_nothing_of_the_dtype(tmp_path: Path) -> None:
    pipeline = tiny_pipelines.sd15()
    pipeline.save_pretrained(tmp_path)
    config = tmp_path / "unet" / "config.json"
    packed = '{"quantization_config": {"quant_method": "vqcompress", "layers": {"a": {}}},'
    config.write_text(packed + config.read_text().lstrip()[1:])
    tensors = {"a.weight": torch.zeros(9, dtype=torch.int8), "a.scale": torch.zeros(99).half()}
    tensors |= {"a.bias": torch.zeros(3).bfloat16(), "vq_shared.book": torch.zeros(99).half()}
    save_file(tensors, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert stored_dtype(tmp_path) == torch.bfloat16


def test_most_numbers_decide_and_eight_bits_are_computed_with_in_bfloat16() -> None:
    assert dtype_of_entries([("F32", (3,)), ("F16", (4,)), ("I8", (99,))]) == torch.float16
    assert dtype_of_entries([("F8_E4M3", (4,)), ("F16", (3,))]) == torch.bfloat16
    assert dtype_of_entries([("I8", (4,))]) == torch.float32
    assert stored_dtype(Path("no such folder")) == torch.float32
