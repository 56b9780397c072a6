"""Decoded weights that are kept: the same outputs, within the budget, and gone when what they stand for changes."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from random_weights import Extras, additive, scalar, trellis
from vqcompress.errors import RecipeError
from vqcompress.kernels.precision import product_dtype
from vqcompress.layers import PackedLayer, VQConv2d, VQLinear, set_dense_budget, vq_layers
from vqcompress.layers.dense_budget import parse_budget
from vqcompress.layers.shared_codebooks import SharedCodebooks


class Network(nn.Module):
    """Linear layers of three formats and sizes, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.small = linear(*trellis((32, 32), 12, (6, 4)))
        self.rotated = linear(*trellis((64, 32), 12, (6,), Extras(rotation=16, column_scales=True, outliers=3)))
        self.additive = linear(*additive((32, 64), 8, 8, 2))
        self.scalar = linear(*scalar((32, 32), 4, 8))
        self.conv = conv(*trellis((32, 2, 3, 3), 8, (5, 3)))

    def forward(self, x):
        y = self.scalar(self.additive(self.rotated(self.small(x))))
        return y, self.conv(x.reshape(-1, 2, 4, 4))


def linear(spec, shape, tensors, bias=True):
    return VQLinear(nn.Linear(shape[1], shape[0], bias=bias), spec, tensors)


def conv(spec, shape, tensors):
    return VQConv2d(nn.Conv2d(shape[1], shape[0], shape[2:], padding=1), spec, tensors)


def kept(network):
    return {name: layer.__dict__["weight_source"] for name, layer in vq_layers(network).items()}


def held(network):
    return {name for name, one in kept(network).items() if one is not None and one.keeps}


def run(network, samples=5, dtype=torch.float32):
    x = torch.randn(samples, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    with torch.no_grad():
        return network(x)


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


@pytest.mark.parametrize("samples", [1, 2, 5, 40])
def test_outputs_are_the_same_bit_for_bit(network, samples):
    expected = run(network, samples)
    budget = set_dense_budget(network, "all")
    assert same(run(network, samples), expected)
    assert same(run(network, samples), expected)
    assert budget.layers == 5
    if samples > 2:
        assert held(network) == {"small", "rotated", "additive", "scalar", "conv"}
        assert budget.used == budget.planned == 4 * (32 * 32 + 64 * 32 + 32 * 64 + 32 * 32 + 32 * 18)


def test_few_samples_still_take_the_product_that_reads_codes(network):
    few = run(network, 2)
    set_dense_budget(network, "all")
    run(network, 40)
    assert same(run(network, 2), few)


def test_the_second_call_decodes_nothing(network):
    set_dense_budget(network, "all")
    first = run(network)
    for layer in vq_layers(network).values():
        layer.__dict__["layout"] = "no layout that anything could decode"
    assert same(run(network), first)


@pytest.mark.parametrize("limit", [0, 4 * 576 - 1, 4 * 576, 4 * 3000, 1 << 40])
def test_no_more_is_kept_than_the_budget(network, limit):
    expected = run(network)
    budget = set_dense_budget(network, limit)
    assert same(run(network), expected)
    assert budget.used <= limit
    assert budget.planned <= limit
    assert (budget.used > 0) == (limit >= 4 * 576)


def test_another_dtype_than_planned_keeps_within_the_budget(network):
    network.bfloat16()
    budget = set_dense_budget(network, 2 * (32 * 32 + 64 * 32 + 32 * 64 + 32 * 32 + 32 * 18))
    halved = product_dtype(torch.bfloat16, torch.device("cpu")).itemsize == 2  # or products are in float32
    assert (budget.layers == 5) == halved
    network.float()
    run(network)
    assert 0 < budget.used <= budget.limit


def test_layers_with_most_time_a_byte_come_first():
    plain, rotated = trellis((64, 64), 12, (6,)), trellis((64, 64), 12, (6,), Extras(rotation=64))
    network = nn.Sequential(linear(*plain), linear(*rotated), linear(*trellis((256, 64), 12, (6,))))
    set_dense_budget(network, 4 * 64 * 64)
    assert [one is not None and one.budget is not None for one in kept(network).values()] == [False, True, False]


@pytest.mark.parametrize("name", ["scale", "weight", "outlier_values", "gains"])
def test_a_tensor_that_is_written_to_is_decoded_again(network, name):
    set_dense_budget(network, "all")
    run(network)
    layer = network.rotated
    with torch.no_grad():
        tensor = layer._parameters[name]
        tensor.copy_(torch.flip(tensor.view(-1), [0]).view_as(tensor))
    found = run(network)
    set_dense_budget(network, 0)
    assert same(found, run(network))


def test_a_tensor_that_is_replaced_is_decoded_again(network):
    set_dense_budget(network, "all")
    run(network)
    network.small.scale.data = network.small.scale.data * 2
    network.conv.scale = nn.Parameter(network.conv.scale.detach() * 3, requires_grad=False)
    found = run(network)
    set_dense_budget(network, 0)
    assert same(found, run(network))


def test_casts_and_training_free_what_is_kept(network):
    budget = set_dense_budget(network, "all")
    run(network)
    network.double().float()
    assert budget.used == 0
    run(network)
    before = budget.used
    network.rotated.scale.requires_grad_()
    y, image = network(torch.randn(5, 32))
    (y.sum() + image.sum()).backward()
    assert network.rotated.scale.grad is not None
    assert budget.used == before - 4 * 64 * 32


def test_gradients_of_inputs_do_not_change(network):
    x = torch.randn(5, 32)

    def gradient():
        given = x.clone().requires_grad_()
        network(given)[0].square().sum().backward()
        return given.grad

    expected = gradient()
    set_dense_budget(network, "all")
    run(network)
    assert torch.equal(gradient(), expected)


def test_a_shared_codebook_that_changes_is_decoded_again():
    spec, _, tensors = trellis((32, 32), 12, (6,), Extras(learned=True))
    shared = SharedCodebooks({"tables": tensors.pop("codebooks")})
    layer = VQLinear(nn.Linear(32, 32), spec, tensors, shared)
    set_dense_budget(layer, "all")
    first = run(layer)
    with torch.no_grad():
        shared.tables.mul_(2)
    found = run(layer)
    assert not torch.equal(found, first)
    set_dense_budget(layer, 0)
    assert torch.equal(found, run(layer))


def test_autocast_and_other_dtypes(network):
    wanted = {}
    network.small.half().float()  # so that its bias survives another such cast
    for limit in (0, "all"):
        set_dense_budget(network, limit)
        run(network)
        with torch.autocast("cpu", torch.bfloat16):
            cast = [run(network), run(network)]
        wanted[limit] = [*cast, run(network), run(network.small.half(), dtype=torch.float16)]
        network.small.float()
    assert all(same(a, b) if isinstance(a, tuple) else torch.equal(a, b) for a, b in zip(*wanted.values(), strict=True))


def test_a_budget_ends_with_its_layers(network):
    budget = set_dense_budget(network, "all")
    run(network)
    network.small = nn.Linear(32, 32)
    gc.collect()
    assert budget.used == budget.planned - 4 * 32 * 32


def test_copies_keep_nothing(network):
    budget = set_dense_budget(network, "all")
    expected = run(network)
    used = budget.used
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):  # noqa: S301 - our own bytes
        assert same(run(other), expected)
        assert not held(other)
    assert budget.used == used


def test_a_pipelines_denoiser_comes_first():
    class Pipeline:
        def __init__(self):
            self.components = {"text_encoder": Network(), "scheduler": object(), "unet": Network()}

    pipeline = Pipeline()
    size = sum(4 * layer.dense_weight().numel() for layer in vq_layers(pipeline.components["unet"]).values())
    budget = set_dense_budget(pipeline, size + 4 * 600)
    layers = {name: kept(part) for name, part in pipeline.components.items() if name != "scheduler"}
    assert all(one is not None for one in layers["unet"].values())
    assert [name for name, one in layers["text_encoder"].items() if one is not None] == ["conv"]
    assert budget.planned == size + 4 * 576
    assert "6 decoded weights" in str(budget)


@pytest.mark.parametrize(
    ("given", "size"),
    [("4GB", 4 * 10**9), ("1.5 gib", 3 << 29), ("800", 800), (7, 7), (None, 0), ("0", 0), ("all", 1 << 62)],
)
def test_sizes(given, size):
    assert parse_budget(given) == size


@pytest.mark.parametrize("given", ["", "many", "-1", -1, "4 apples", True, 1.5, "1e400GB"])
def test_other_sizes_are_refused(given):
    with pytest.raises(RecipeError, match="dense budget"):
        parse_budget(given)


def test_layers_that_were_made_before_have_no_budget():
    assert all(one is None for one in kept(Network()).values())
    assert isinstance(Network().small, PackedLayer)
