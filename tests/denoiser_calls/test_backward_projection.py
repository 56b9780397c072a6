"""Blocks of a large denoiser run again in a backward pass: the same gradients from a part of the activations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from tests.architectures import tiny_pipelines
from tests.placement.pretended import CUDA, OnDevice, pretended_cuda
from vqcompress.architectures import architecture_of
from vqcompress.calibration.importance import layer_importance
from vqcompress.denoiser_calls import backward_projection
from vqcompress.denoiser_calls.record import record_teacher
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.placement.streaming import stream
from vqcompress.sampling_config import SamplingConfig

MAKES = {name: getattr(tiny_pipelines, name) for name in ("sdxl", "pixart", "lumina", "sd3", "flux")}


def recorded(name):
    pipeline = MAKES[name]()
    architecture = architecture_of(pipeline)
    run = SamplingRun(pipeline, architecture, ("a cat",), sampling=SamplingConfig(steps=2, height=16, width=16))
    calls = [call["kwargs"] for call in record_teacher(run, count=2)]
    layers = [plan.name for plan in architecture.layers(pipeline, architecture.denoiser) if plan.reason is None]
    return getattr(pipeline, architecture.denoiser), layers, calls


@pytest.mark.parametrize("name", MAKES)
def test_importances_are_the_same_bits(name, monkeypatch):
    denoiser, layers, calls = recorded(name)
    expected = layer_importance(denoiser, layers, calls, seed=0)
    assert max(expected.values()) > 0
    monkeypatch.setattr(backward_projection, "LARGE", 0)
    assert layer_importance(denoiser, layers, calls, seed=0) == expected
    assert not any("_call_impl" in vars(module) for module in denoiser.modules())


def test_weights_that_wait_on_the_host_are_brought_again(monkeypatch):
    denoiser, layers, calls = recorded("sdxl")
    expected = layer_importance(denoiser, layers, calls, seed=0)
    monkeypatch.setattr(backward_projection, "LARGE", 0)
    for at_once in (0, 1 << 14):
        with pretended_cuda():
            stream(denoiser, CUDA, at_once)
            assert layer_importance(denoiser, layers, calls, seed=0) == expected
        assert not any(isinstance(tensor, OnDevice) for tensor in denoiser.parameters())


class Blocks(nn.Module):
    """Ten blocks of four layers."""

    def __init__(self):
        super().__init__()
        block = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.SiLU())]
        self.blocks = nn.ModuleList(nn.Sequential(*copy.deepcopy(block)) for _ in range(10))

    def forward(self, sample):
        for block in self.blocks:
            sample = block(sample)
        return (sample,)


@pytest.mark.parametrize(("large", "activations"), [(1 << 60, 40), (0, 10)])
def test_activations_inside_of_blocks_are_not_kept(large, activations, monkeypatch):
    """Those of every layer, or those that enter blocks; one more goes into the projection."""
    net, kept = Blocks(), []
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]

    def note(tensor):
        if tensor.shape == (32, 64):
            kept.append(tensor)
        return tensor

    monkeypatch.setattr(backward_projection, "LARGE", large)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        layer_importance(net, layers, [{"sample": torch.randn(32, 64)}], seed=0)
    assert len(kept) == activations + 1


def test_hooks_of_a_block_run_in_pairs(monkeypatch):
    """What a hook brings before a block, another takes away after it, also where the block runs again."""
    net, seen = Blocks(), []
    net.blocks[3].register_forward_pre_hook(lambda *_: seen.append("before"))
    net.blocks[3].register_forward_hook(lambda *_: seen.append("after"))
    monkeypatch.setattr(backward_projection, "LARGE", 0)
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    layer_importance(net, layers, [{"sample": torch.randn(32, 64)}], seed=0)
    assert seen == ["before", "after"] * 2


def test_a_failed_pass_leaves_the_denoiser_as_it_was(monkeypatch):
    denoiser, layers, calls = recorded("pixart")
    monkeypatch.setattr(backward_projection, "LARGE", 0)
    with pytest.raises(TypeError):
        layer_importance(denoiser, layers, [calls[0] | {"no_such_argument": 1}], seed=0)
    assert not any("_call_impl" in vars(module) for module in denoiser.modules())
