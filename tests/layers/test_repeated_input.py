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
from torch.utils.checkpoint import checkpoint

from random_weights import Extras, trellis
from synthetic import packed_weight
from tests.architectures import tiny_pipelines
from vqcompress.layers import VQLinear, repeated_input, swap, vq_layers
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
    layer.__dict__["_product"] = lambda x, plain=False: calls.append(1) or product(x, plain)
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
    """A layer that keeps the output of its input: ``(layer, input, a copy of it, products so far)``."""
    layer, x = linear(), prompt()
    calls = counted(layer)
    with torch.no_grad():
        outputs = [layer(x) for _ in range(4)]
        assert all(torch.equal(output, outputs[0]) for output in outputs)
        assert len({output.data_ptr() for output in outputs}) == len(outputs)
        assert len(calls) == 2  # the second call shows that inputs come again
        yield layer, x, outputs[3], calls


@pytest.mark.parametrize("write", ["numpy", "data"])
def test_writes_that_torch_does_not_count_are_seen(write):
    """A buffer that is filled anew for each call is one tensor with one version."""
    layer, numbers = linear(), prompt().numpy()
    x = torch.from_numpy(numbers)
    with torch.no_grad():
        for shift in range(4):
            if write == "numpy":
                numbers += shift
            else:
                x.data.add_(shift)
            assert x._version == 0
            assert torch.equal(layer(x), fresh(layer)(x.clone())), shift


def test_layers_share_a_copy_of_their_input():
    layers, x = [linear() for _ in range(3)], prompt()
    with torch.no_grad():
        for _ in range(3):
            for layer in layers:
                layer(x)
    contents = {id(layer.__dict__["repeated_input"]._kept.content) for layer in layers}
    assert len(contents) == 1
    before = len(repeated_input._CONTENTS)
    del x
    gc.collect()
    assert len(repeated_input._CONTENTS) == before - 1


def test_from_then_on_the_first_call_with_an_input_is_the_only_one(settled):
    layer, _, _, calls = settled
    other = prompt() + 1
    assert torch.equal(layer(other), layer(other))
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


WRITES = {
    "view": lambda output: output.view(-1)[:7].zero_(),
    "data": lambda output: output.data.zero_(),
    "other data": lambda output: setattr(output, "data", output.data + 1),
    "numpy": lambda output: output.numpy().fill(0),
    "shape": lambda output: output.t_(),
    "gradients": lambda output: output.requires_grad_(),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_is_done_to_an_output_touches_no_other(settled, name):
    layer, x, kept, calls = settled
    layer.repeated_input.drop()
    expected, computed, returned, other = kept.clone(), layer(x), layer(x), layer(x)
    for output in (computed, returned):  # of the call that keeps it, and of one that finds it
        WRITES[name](output)
        assert torch.equal(layer(x), expected)
        assert not layer(x).requires_grad
        assert torch.equal(other, expected)
    assert len(calls) == 3


def test_an_output_that_a_function_makes_part_of_a_graph(settled):
    layer, x, kept, _ = settled
    given = x.clone().requires_grad_()
    with torch.enable_grad():
        outputs = [checkpoint(layer, given, use_reentrant=True) for _ in range(3)]
        outputs[2].sum().backward()
    found = layer(given)
    assert torch.equal(found, kept)
    assert not found.requires_grad


def test_inside_vmap(settled):
    layer, x, kept, _ = settled
    batch = torch.stack([x, 2 * x])
    found = torch.func.vmap(lambda x: layer(x) + layer(x))(batch)
    assert torch.allclose(found[0], 2 * kept, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found[1], 2 * layer(2 * x), rtol=1e-4, atol=1e-4)


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
    layer(x)
    output = weakref.ref(layer.repeated_input._kept.output)
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
    layer, x, _, _ = settled
    del layer.__dict__["_product"]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301 - our own bytes
        assert other.__dict__["repeated_input"] is None
    calls = counted(layer.double().float())
    layer(x)
    assert len(calls) == 1


def test_a_shared_codebook_that_changes():
    spec, shape, tensors = trellis((32, 40), 12, (6,), Extras(learned=True))
    shared = SharedCodebooks({"tables": tensors.pop("codebooks")})
    layer, x = linear((spec, shape, tensors), shared), prompt()
    with torch.no_grad():
        outputs = [layer(x) for _ in range(3)]
        assert torch.equal(outputs[1], outputs[2])
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
            layer.__dict__["_product"] = lambda x, plain=False, name=name, product=product: (
                counts.update([name]) or product(x, plain)
            )

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
