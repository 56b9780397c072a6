"""Weights that wait on the host: the same outputs and gradients, and nothing of them left on the device."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from tests.architectures import tiny_pipelines
from tests.placement.pretended import CUDA, MixedDevicesError, OnDevice, pretended_cuda
from vqcompress.architectures import architecture_of
from vqcompress.placement import execution_device, saved_on_host
from vqcompress.placement.streaming import stop_streaming, stream


class Net(nn.Module):
    """A parameter of its own, a list of blocks, tied weights, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.rand(8))
        self.register_buffer("shift", torch.rand(8))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(3))
        self.last = nn.Linear(8, 8)
        self.blocks[2][2].weight = self.blocks[0][0].weight
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x * self.scale + self.shift)
        return self.last(x)


def outcome(net: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, 16).reshape(2, 8).requires_grad_()
    with saved_on_host(net):
        out = net(x)
        out.square().sum().backward()
    assert x.grad is not None
    return out.detach().cpu(), x.grad


@pytest.mark.parametrize("at_once", [0, 600, 1 << 20])
def test_outputs_and_gradients_are_those_of_the_host(at_once: int) -> None:
    net = Net()
    expected, weights = outcome(net), {name: id(p) for name, p in net.named_parameters(remove_duplicate=False)}
    with pretended_cuda():
        stream(net, CUDA, at_once)
        assert execution_device(net) == CUDA
        found = outcome(net)
    assert all(map(torch.equal, found, expected))
    assert {name: id(p) for name, p in net.named_parameters(remove_duplicate=False)} == weights
    assert not any(isinstance(tensor, OnDevice) for tensor in [*net.parameters(), *net.buffers()])
    assert stop_streaming(net)
    assert execution_device(net).type == "cpu"
    assert all(map(torch.equal, outcome(net), expected))


def test_what_autograd_saves_are_no_weights() -> None:
    net, alive = Net(), []
    with pretended_cuda():
        stream(net, CUDA, 0)
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda layer, _: alive.append(weakref.ref(layer.weight)))
        x = torch.ones(1, 8, requires_grad=True)
        with saved_on_host(net):
            out = net(x)
        gc.collect()
        assert len(alive) == 7
        assert not any(weight() is not None for weight in alive)
        out.sum().backward()
    assert x.grad is not None


def test_a_layer_that_fails_leaves_its_weights_on_the_host() -> None:
    net = Net()
    with pretended_cuda():
        stream(net, CUDA, 0)
        with pytest.raises(RuntimeError):
            net(torch.ones(1, 3))
    assert not any(isinstance(tensor, OnDevice) for tensor in [*net.parameters(), *net.buffers()])


def test_a_copy_over_the_same_weights_streams_too() -> None:
    net = Net()
    expected = outcome(net)
    with pretended_cuda():
        stream(net, CUDA, 0)
        tensors = [*net.parameters(), *net.buffers()]
        twin = copy.deepcopy(net, {id(tensor): tensor for tensor in tensors})
        assert all(map(torch.equal, outcome(twin), expected))
    assert all(one is other for one, other in zip(net.parameters(), twin.parameters(), strict=True))


def test_what_learns_stays_where_it_is() -> None:
    net = Net()
    with pretended_cuda():
        stream(net, CUDA, 0)
        net.last.weight = nn.Parameter(net.last.weight.detach().to(CUDA))
        net(torch.ones(1, 8)).sum().backward()
        assert isinstance(net.last.weight.grad, OnDevice)


def test_a_mix_of_devices_is_noticed() -> None:
    net = Net()
    with pretended_cuda(), pytest.raises(MixedDevicesError):
        net(torch.ones(1, 8).to(CUDA))


@pytest.mark.parametrize("at_once", [0, 1 << 14])
def test_pipelines_draw_the_same_latents(at_once: int) -> None:
    pipeline = tiny_pipelines.sdxl()
    architecture = architecture_of(pipeline)
    drawing = {"prompts": ["a cat"], "seeds": [3], "output_type": "latent"}
    expected = architecture.sample(pipeline, **drawing)
    with pretended_cuda():
        for network in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae):
            stream(network, CUDA, at_once)
        found = architecture.sample(pipeline, **drawing).cpu()
    assert torch.equal(found, expected)
