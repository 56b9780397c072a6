"""Moments are those of the gradients of the loss's projections with respect to weights."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.finetuning.conftest import GUIDANCE
from vqcompress.finetuning.curvature import SHRINKAGE, backward_projections, loss_moments
from vqcompress.finetuning.objective import random_projections
from vqcompress.finetuning.task import make_task
from vqcompress.layers import swap
from vqcompress.matrix_view import to_matrix

LINEAR, CONV = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "up_blocks.0.resnets.0.conv1"


@pytest.fixture
def task(dense, context):
    return make_task(dense, context())


def gradients_of(task, name, samples, seed=0):
    """Gradients of the projections of ``samples`` with respect to a weight, each by itself, by autograd."""
    batch, weight = task.train.batch(samples), task.denoiser.get_submodule(name).weight.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    values = random_projections(task.output(batch), batch.branches, GUIDANCE, task.step_config.guided, generator)
    values = values * (batch.weights / task.signal).sqrt()
    found = [torch.autograd.grad(value, weight, retain_graph=True)[0] for value in values]
    weight.requires_grad_(False)
    return [to_matrix(gradient) for gradient in found]


@pytest.mark.parametrize("name", [LINEAR, CONV])
def test_samples_that_a_layer_keeps_apart_come_apart(task, name):
    parts = []
    backward_projections(task, {name: lambda inputs, gradients: parts.append((inputs, gradients))}, [0, 2, 1], seed=0)
    ((inputs, gradients),) = parts
    expected = gradients_of(task, name, [0, 2, 1])
    assert len(inputs) == 3
    for read, backward, gradient in zip(inputs, gradients, expected, strict=True):
        tolerance = 1e-3 * float(gradient.abs().max())
        torch.testing.assert_close(backward.t() @ read, gradient, rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize("name", [LINEAR, CONV])
def test_moments_are_those_of_the_weight_s_gradients(task, name):
    samples = [0, 1, 2]
    (moment,) = loss_moments(task, [name], samples, seed=0).values()
    expected = gradients_of(task, name, samples)
    inputs, outputs = sum(s.t() @ s for s in expected), sum(s @ s.t() for s in expected)
    inputs = inputs / inputs.diagonal().mean() + SHRINKAGE * torch.eye(len(inputs))
    torch.testing.assert_close(moment.inputs, inputs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moment.outputs, outputs / outputs.diagonal().mean(), rtol=1e-3, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in task.denoiser.parameters())


def test_packed_layers_have_the_moments_of_their_decoded_weights(dense, context, quantized):
    decoded = copy.deepcopy(dense)
    with torch.no_grad():
        for name, packed in quantized.items():
            decoded.get_submodule(name).weight.copy_(packed.decode())
    swap(dense, quantized)
    names = [name for name in (LINEAR, CONV) if name in quantized]
    assert names
    first, second = (loss_moments(make_task(net, context()), names, [0, 1], 0) for net in (dense, decoded))
    for name in names:
        torch.testing.assert_close(first[name].inputs, second[name].inputs, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(first[name].outputs, second[name].outputs, rtol=1e-3, atol=1e-4)


def test_a_layer_that_mixes_samples_gets_them_all_at_once(task):
    """As routed experts do, which see the tokens of all samples in one list."""
    layer, parts = task.denoiser.get_submodule(LINEAR), []
    forward = layer.forward
    layer.forward = lambda x: forward(x)
    flat = torch.nn.Module()
    flat.inner = layer
    flat.forward = lambda x: layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    task.denoiser.set_submodule(LINEAR, flat)
    use = {f"{LINEAR}.inner": lambda inputs, gradients: parts.append((inputs, gradients))}
    backward_projections(task, use, [0, 1], seed=0)
    ((inputs, gradients),) = parts
    assert len(inputs) == len(gradients) == 1
    expected = sum(gradients_of(task, f"{LINEAR}.inner", [0, 1]))
    torch.testing.assert_close(
        gradients[0].t() @ inputs[0], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )
