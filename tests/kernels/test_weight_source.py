"""The second call of a layer: what the first one settled, until a tensor changes; and what it takes of the host."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from random_weights import Extras, trellis
from tests.kernels.host_time import least_seconds
from vqcompress.kernels.cpu import dense as cpu
from vqcompress.kernels.weight_source import DenseBudget, WeightSource
from vqcompress.layers import VQConv2d, VQLinear

EVERYTHING = Extras(column_scales=True, outliers=5, rotation=16)
HOST_OF_DENSE = 2.5  # 1.5 on a busy machine, product included; an `nn.Linear` takes 2.4 µs of an idle one


def linear(weight, bias=True):
    spec, shape, tensors = weight
    return VQLinear(nn.Linear(shape[1], shape[0], bias=bias), spec, tensors)


def layers():
    """One of each: plain, with every transform, with columns of no bits, a convolution."""
    spec, _, tensors = trellis((36, 4, 3, 3), 8, (3, 4, 0), Extras(column_scales=True, outliers=5, rotation=4))
    return {
        "plain": linear(trellis((64, 40), 12, (6, 4))),
        "transformed": linear(trellis((64, 40), 12, (6, 0), EVERYTHING), bias=False),
        "convolution": VQConv2d(nn.Conv2d(4, 36, 3, padding=1), spec, tensors),
    }


def call(layer, seed=0):
    shape = (3, 4, 5, 5) if isinstance(layer, nn.Conv2d) else (3, 40)
    with torch.no_grad():
        return layer(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("name", layers())
def test_a_second_call_gives_the_same_and_parses_nothing(name):
    layer = layers()[name]
    first = call(layer)
    layer.__dict__["layout"] = "no layout that anything could decode"
    assert torch.equal(call(layer), first)
    assert not torch.equal(call(layer, 1), first)


@pytest.mark.parametrize("name", layers())
def test_a_tensor_that_is_written_to_replaced_or_moved_is_decoded_again(name):
    layer = layers()[name]
    before = call(layer)
    with torch.no_grad():
        layer.scale.mul_(2)
    assert torch.equal(call(layer), call(copy.deepcopy(layer)))
    assert not torch.equal(call(layer), before)
    layer.weight.data = torch.flip(layer.weight.data, [1])
    assert torch.equal(call(layer), call(copy.deepcopy(layer)))
    layer.scale = nn.Parameter(layer.scale.detach() / 3, requires_grad=False)
    assert torch.equal(call(layer), call(copy.deepcopy(layer)))
    assert torch.equal(call(layer.double().float()), call(copy.deepcopy(layer)))


@pytest.mark.parametrize("name", layers())
def test_what_is_settled_holds_no_stored_tensor(name):
    layer = layers()[name]
    spec, shape, tensors = layer.spec, layer.dense_shape, layer.tensors()
    decode = cpu.prepare(spec, shape, tensors, torch.float32)
    expected = cpu.dense_weight(spec, shape, tensors, torch.float32).clone()
    assert torch.equal(decode(), expected)
    references = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors.values()]
    del layer, tensors
    assert decode is not None
    assert all(reference.expired() for reference in references)


def test_threads_that_share_layers():
    chosen = layers()
    expected = {name: call(layer) for name, layer in chosen.items()}

    def some(number):
        names = [*chosen][number % 3 :] + [*chosen][: number % 3]
        return all(torch.equal(call(chosen[name]), expected[name]) for name in names * 20)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(some, range(8)))


def test_a_weight_that_two_threads_settle_at_once_is_counted_once():
    x, weight, budget = torch.zeros(4, 8), torch.zeros(8, 8), DenseBudget(1 << 20)
    source = WeightSource(budget)

    def overtaken():  # by another thread, while this one decodes
        thread = Thread(target=source.get, args=(x, [weight], lambda: weight, lambda: None))
        thread.start()
        thread.join()
        return weight

    source.get(x, [weight], overtaken, lambda: None)
    assert budget.used == weight.nbytes
    source.drop()
    assert budget.used == 0


def test_a_settled_call_made_in_inference_mode_serves_others():
    layer = layers()["transformed"]
    with torch.inference_mode():
        first = call(layer)
    x = torch.randn(3, 40, requires_grad=True)
    layer(x).sum().backward()
    assert torch.equal(call(layer), first)


def test_host_time_of_a_call_whose_launch_does_nothing():
    layer, dense, x = linear(trellis((8, 8), 12, (6,))), nn.Linear(8, 8), torch.zeros(4, 8)
    weight, source = torch.zeros(8, 8), WeightSource()
    layer.take_weight_from(source)
    source.get(x, list(layer.tensors().values()), lambda: weight, lambda: lambda: weight)
    with torch.inference_mode():
        took = least_seconds({"ours": lambda: layer(x), "dense": lambda: dense(x)})
    assert took["ours"] <= HOST_OF_DENSE * took["dense"], took
