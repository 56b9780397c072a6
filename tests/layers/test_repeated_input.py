"""Layers whose input comes again, as the prompt does in every step: the same bits, fewer products, nothing stale."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref
from collections import Counter

import pytest
import torch
from torch import nn

from random_weights import Extras, trellis
from synthetic import packed_weight
from tests.architectures import tiny_pipelines
from vqcompress.layers import VQLinear, swap, vq_layers
from vqcompress.layers.shared_codebooks import SharedCodebooks
from vqcompress.matrix_view import is_quantizable

STEPS, PROMPT = 4, r"attn2\.to_[kv]$"


def linear(weight=None, shared=None):
    spec, shape, tensors = weight or trellis((64, 40), 12, (6, 4), Extras(column_scales=True))
    return VQLinear(nn.Linear(shape[1], shape[0]), spec, tensors, shared)


def prompt(columns=40):
    return torch.randn(5, columns, generator=torch.Generator().manual_seed(1))


def counted(layer):
    """A list that grows with each product that ``layer`` computes."""
    calls, product = [], layer._product
    layer.__dict__["_product"] = lambda x: calls.append(1) or product(x)
    return calls


def fresh(layer):
    """A copy that knows of no call."""
    product = layer.__dict__.pop("_product", None)
    found = copy.deepcopy(layer)
    if product is not None:
        layer.__dict__["_product"] = product
    return found


@pytest.fixture
def settled():
    """A layer that keeps the output of its input: ``(layer, input, output, products so far)``."""
    layer, x = linear(), prompt()
    calls = counted(layer)
    with torch.no_grad():
        outputs = [layer(x) for _ in range(4)]
        assert all(torch.equal(output, outputs[0]) for output in outputs)
        assert outputs[2] is outputs[3]
        assert len(calls) == 2  # the second call shows that inputs come again
        yield layer, x, outputs[3], calls


def test_from_then_on_the_first_call_with_an_input_is_the_only_one(settled):
    layer, _, _, calls = settled
    other = prompt() + 1
    assert layer(other) is layer(other)
    assert len(calls) == 3
    assert torch.equal(layer(other), fresh(layer)(other))


@pytest.mark.parametrize("name", ["weight", "scale", "bias", "gains"])
def test_a_tensor_of_the_layer_that_is_written_to(settled, name):
    layer, x, before, _ = settled
    tensor = layer._parameters[name]
    tensor.copy_(torch.flip(tensor.view(-1), [0]).view_as(tensor))
    found = layer(x)
    assert torch.equal(found, fresh(layer)(x))
    assert not torch.equal(found, before)


def test_tensors_that_are_replaced(settled):
    layer, x, before, _ = settled
    layer.bias = nn.Parameter(torch.ones(64))
    assert torch.equal(layer(x), fresh(layer)(x))
    layer.scale.data = layer.scale.data * 2
    assert torch.equal(layer(x), fresh(layer)(x))
    assert not torch.equal(layer(x), before)


def test_an_input_that_is_written_to_or_gets_other_data(settled):
    layer, x, before, _ = settled
    x.mul_(2)
    assert torch.equal(layer(x), fresh(layer)(x.clone()))
    x.data = prompt() + 3
    assert torch.equal(layer(x), fresh(layer)(x.clone()))
    x.data = x.data[:2]
    assert layer(x).shape == (2, 64)
    assert before.shape == (5, 64)


def test_an_output_that_is_written_to_is_computed_again(settled):
    layer, x, kept, _ = settled
    expected = kept.clone()
    kept.view(-1)[:7].zero_()
    assert torch.equal(layer(x), expected)


def test_an_equal_input_that_is_another_tensor_is_not_the_same(settled):
    layer, x, kept, calls = settled
    assert torch.equal(layer(x.clone()), kept)
    assert len(calls) == 3


def test_never_with_gradients_in_inference_mode_or_under_autocast(settled):
    layer, x, kept, calls = settled
    with torch.enable_grad():
        found = [layer(x), layer(x)]
    with torch.inference_mode():
        inside = x.clone()
        found += [layer(inside), layer(inside)]
    assert len(calls) == 6
    assert all(torch.equal(output, kept) for output in found)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_outputs_are_freed_with_their_input_and_layers_with_their_last_user(settled):
    layer, _, _, _ = settled
    x = prompt()
    output = weakref.ref(layer(x))
    assert output() is layer(x)
    del x
    assert output() is None
    alone = linear()
    x = prompt()
    for _ in range(3):
        alone(x)
    gone = weakref.ref(alone)
    gc.disable()
    try:
        del alone
        assert gone() is None
    finally:
        gc.enable()


def test_casts_and_copies_forget(settled):
    layer, x, kept, _ = settled
    del layer.__dict__["_product"]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301 - our own bytes
        assert other.__dict__["repeated_input"] is None
    assert layer.double().float()(x) is not kept


def test_a_shared_codebook_that_changes():
    spec, shape, tensors = trellis((32, 40), 12, (6,), Extras(learned=True))
    shared = SharedCodebooks({"tables": tensors.pop("codebooks")})
    layer, x = linear((spec, shape, tensors), shared), prompt()
    with torch.no_grad():
        outputs = [layer(x) for _ in range(3)]
        assert outputs[1] is outputs[2]
        shared.tables.mul_(2)
        assert torch.equal(layer(x), fresh(layer)(x))
        assert not torch.equal(layer(x), outputs[0])


def test_a_traced_layer_computes():
    layer, x = linear(), prompt()
    with torch.no_grad():
        expected = [layer(x) for _ in range(3)][-1]
        found = torch.compile(layer, backend="eager", fullgraph=True)
        assert torch.equal(found(x), expected)
        x.mul_(2)
        assert torch.equal(found(x), fresh(layer)(x))


@pytest.fixture(scope="module")
def pipeline():
    made = tiny_pipelines.sdxl()
    found = {name: m for name, m in made.unet.named_modules() if is_quantizable(m)}
    swap(made.unet, {name: packed_weight("trellis", tuple(layer.weight.shape)) for name, layer in found.items()})
    made.set_progress_bar_config(disable=True)
    return made


def test_images_are_the_same_bytes_and_keys_and_values_are_computed_once_a_prompt(pipeline):
    layers = vq_layers(pipeline.unet)
    counts, hooks = Counter(), []
    for name, layer in layers.items():
        if isinstance(layer, VQLinear):
            product = layer._product
            layer.__dict__["_product"] = lambda x, name=name, product=product: counts.update([name]) or product(x)

    def image(text, seed=0):
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": STEPS, "height": 16, "width": 16, "output_type": "pt"}
        return pipeline(text, generator=generator, **options).images

    first, second = image("a cat"), image("two dogs")
    of_prompt = {name for name in layers if re.search(PROMPT, name)}
    assert len(of_prompt) >= 4
    assert {counts[name] for name in of_prompt} == {2 + 1}  # of the first prompt, of the second
    assert counts["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"] == 2 * STEPS
    for layer in layers.values():  # a copy in each call: nothing comes again
        hooks.append(layer.register_forward_pre_hook(lambda layer, given: tuple(x.clone() for x in given)))
    assert torch.equal(image("a cat"), first)
    assert torch.equal(image("two dogs"), second)
    assert {counts[name] for name in of_prompt} == {2 + 1 + 2 * STEPS}
    for hook in hooks:
        hook.remove()
