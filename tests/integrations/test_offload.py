"""Offloading, casting, copying and compiling: what users do to a component to make it fit or run fast."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import remove_hook_from_submodules
from diffusers.hooks import group_offloading
from torch._dynamo.utils import counters

from vqcompress.layers import vq_layers

NEEDS_NO_ACCELERATOR = pytest.mark.skipif(
    not hasattr(group_offloading, "TorchDeviceBackend") and torch.accelerator.current_accelerator() is None,
    reason="this diffusers offloads groups, of any model, only on machines with an accelerator",
)


@pytest.fixture
def unet(compressed_pipeline):
    """A packed UNet with shared codebooks."""
    return compressed_pipeline.unet


@pytest.mark.feature("sequential offload", "UNet")
@pytest.mark.parametrize("state", ["fresh", "reused"])
def test_sequential_offload(state, unet, run_unet):
    expected = run_unet(unet)
    cpu_offload(unet, execution_device=torch.device("cpu"))
    assert unet.vq_shared.book.device.type == "meta"
    assert torch.equal(run_unet(unet, torch.float32), expected)
    if state == "reused":
        assert torch.equal(run_unet(unet, torch.float32), expected)
    remove_hook_from_submodules(unet)


def test_disk_offload(unet, run_unet, tmp_path):
    expected = run_unet(unet)
    disk_offload(unet, tmp_path, execution_device=torch.device("cpu"))
    assert next(iter(vq_layers(unet).values())).weight.device.type == "meta"
    assert torch.equal(run_unet(unet, torch.float32), expected)


@NEEDS_NO_ACCELERATOR
@pytest.mark.feature("group offload", "UNet")
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload(kind, unet, run_unet):
    expected = run_unet(unet)
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    cpu = torch.device("cpu")
    unet.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **blocks)
    assert torch.equal(run_unet(unet, torch.float32), expected)


def _to_disk(unet, folder):
    """Between its calls a layer holds memory without contents, so whatever reads it then is wrong."""
    cpu = torch.device("cpu")
    options = {"offload_type": "leaf_level", "offload_to_disk_path": str(folder)}
    unet.enable_group_offload(onload_device=cpu, offload_device=cpu, **options)


@NEEDS_NO_ACCELERATOR
@pytest.mark.feature("group offload", "UNet")
def test_group_offload_to_disk(unet, run_unet, tmp_path):
    expected = run_unet(unet)
    _to_disk(unet, tmp_path)
    for _ in range(2):
        assert torch.equal(run_unet(unet, torch.float32), expected)


@NEEDS_NO_ACCELERATOR
@pytest.mark.feature("`torch.compile` with group offload", "UNet")
@pytest.mark.slow
def test_compiled_and_offloaded_by_group(unet, run_unet, tmp_path):
    expected = run_unet(unet)
    _to_disk(unet, tmp_path)
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]  # of the whole process
    compiled = torch.compile(unet, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(run_unet(compiled, torch.float32), expected)
    assert counters["stats"]["unique_graphs"] > before
    torch._dynamo.reset()


@pytest.mark.feature("layerwise casting", "UNet")
def test_layerwise_casting_keeps_packed_weights_exact(unet, run_unet):
    weights = {name: layer.dense_weight() for name, layer in vq_layers(unet).items()}
    unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert torch.isfinite(run_unet(unet, torch.float32)).all()
    for name, layer in vq_layers(unet).items():
        assert torch.equal(layer.dense_weight(), weights[name]), name


@pytest.mark.feature("`deepcopy`", "UNet")
def test_deepcopy(unet, run_unet):
    weight_sharing_copy = copy.deepcopy(unet)
    expected = run_unet(unet)
    unet.vq_shared.book.data.zero_()
    assert torch.equal(run_unet(weight_sharing_copy), expected)


@pytest.mark.feature("gradient checkpointing", "UNet")
def test_gradient_checkpointing_gives_the_same_gradient(unet):
    gradients = []
    unet.train()
    for enable in (unet.disable_gradient_checkpointing, unet.enable_gradient_checkpointing):
        enable()
        sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
        states = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
        unet(sample, 3, states).sample.square().sum().backward()
        gradients.append(sample.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.feature("`torch.compile(fullgraph=True)`, one graph for all resolutions", "UNet")
@pytest.mark.slow
def test_one_graph_for_all_resolutions(unet, run_unet):
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]  # of the whole process
    compiled = torch.compile(unet, fullgraph=True, dynamic=True, backend="eager")
    for size in (8, 16):
        sample, states = torch.randn(2, 4, size, size), torch.randn(2, 5, 32)
        with torch.no_grad():
            torch.testing.assert_close(compiled(sample, 3, states).sample, unet(sample, 3, states).sample)
    assert counters["stats"]["unique_graphs"] - before == 1
    torch._dynamo.reset()
