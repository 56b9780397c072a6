"""What users do to a DiT and a text encoder to make them fit or run fast: offloading, casting, copying, compiling."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting, group_offloading
from torch import nn
from torch._dynamo.utils import counters
from transformers import T5EncoderModel

NEEDS_NO_ACCELERATOR = pytest.mark.skipif(
    not hasattr(group_offloading, "TorchDeviceBackend") and torch.accelerator.current_accelerator() is None,
    reason="this diffusers offloads groups, of any model, only on machines with an accelerator",
)


@pytest.mark.feature("sequential offload")
def test_sequential_offload(kind, packed):
    expected = kind.run(packed)
    cpu_offload(packed, execution_device=torch.device("cpu"))
    assert packed.vq_shared.book.device.type == "meta"
    assert torch.equal(kind.run(packed, torch.float32), expected)
    remove_hook_from_submodules(packed)


@NEEDS_NO_ACCELERATOR
@pytest.mark.feature("group offload")
def test_group_offload(kind, packed):
    expected, cpu = kind.run(packed), torch.device("cpu")
    apply_group_offloading(packed, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    assert torch.equal(kind.run(packed, torch.float32), expected)


def _untie(packed: nn.Module) -> None:
    """diffusers writes a tensor that two modules share once for each; the second time it has no contents any more."""
    if isinstance(packed, T5EncoderModel):
        packed.encoder.embed_tokens = copy.deepcopy(packed.shared)


def _to_disk(packed: nn.Module, folder: Path) -> None:
    """Between its calls a layer holds memory without contents, so whatever reads it then is wrong."""
    _untie(packed)
    cpu = torch.device("cpu")
    options = {"offload_type": "leaf_level", "offload_to_disk_path": str(folder)}
    apply_group_offloading(packed, onload_device=cpu, offload_device=cpu, **options)


@NEEDS_NO_ACCELERATOR
@pytest.mark.feature("group offload")
def test_group_offload_to_disk(kind, packed, tmp_path):
    expected = kind.run(packed)
    _to_disk(packed, tmp_path)
    for _ in range(2):
        assert torch.equal(kind.run(packed, torch.float32), expected)


@NEEDS_NO_ACCELERATOR
@pytest.mark.feature("`torch.compile` with group offload")
@pytest.mark.slow
def test_compiled_and_offloaded_by_group(kind, make_packed, tmp_path):
    packed = make_packed(layers=1)
    expected = kind.run(packed)
    _to_disk(packed, tmp_path)
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]  # of the whole process
    compiled = torch.compile(packed, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(kind.run(compiled, torch.float32), expected)
    assert counters["stats"]["unique_graphs"] > before
    torch._dynamo.reset()


@pytest.mark.feature("layerwise casting")
def test_layerwise_casting(kind, packed, exact):
    before = copy.deepcopy(packed)
    skip = ["norm", "pos_embed", "embed", "shared"]
    apply_layerwise_casting(packed, torch.bfloat16, torch.float32, skip_modules_pattern=skip)
    assert torch.isfinite(kind.run(packed, torch.float32)).all()
    assert exact(packed, before)


@pytest.mark.feature("`deepcopy`")
def test_deepcopy(kind, packed):
    weight_sharing_copy, expected = copy.deepcopy(packed), kind.run(packed)
    packed.vq_shared.book.data.zero_()
    assert torch.equal(kind.run(weight_sharing_copy), expected)
    assert not torch.equal(kind.run(packed), expected)


@pytest.mark.feature("`torch.compile(fullgraph=True)`, one graph for all resolutions")
@pytest.mark.slow
def test_one_graph_for_all_sizes(kind, make_packed):
    packed = make_packed(layers=1)
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]  # of the whole process
    compiled = torch.compile(packed, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (8, 4):
        torch.testing.assert_close(kind.run(compiled, torch.float32, size), kind.run(packed, size=size))
    assert counters["stats"]["unique_graphs"] - before == 1
    torch._dynamo.reset()
