"""What is kept beside a tensor: made once, and never that of another tensor."""

from __future__ import annotations

import gc

import pytest
import torch

from vqcompress.kernels.column_order import column_order
from vqcompress.kernels.tensor_cache import TensorCache


def counted():
    calls = []

    def make():
        calls.append(None)
        return len(calls)

    return make


def test_made_once_for_a_tensor_and_its_views():
    derived, make, tensor = TensorCache(), counted(), torch.zeros(4)
    assert [derived(tensor, "a", make), derived(tensor.view(2, 2), "a", make), derived(tensor, "b", make)] == [1, 1, 2]


def test_made_anew_when_the_tensor_is_written_to():
    derived, make, tensor = TensorCache(), counted(), torch.zeros(4)
    derived(tensor, "a", make)
    tensor.add_(1)
    assert derived(tensor, "a", make) == 2


def test_parts_of_one_storage_are_different_tensors():
    derived, make, tensor = TensorCache(), counted(), torch.zeros(4)
    assert [derived(tensor[:2], "a", make), derived(tensor[2:], "a", make)] == [1, 2]


def test_a_new_tensor_never_gets_a_dead_ones_value():
    derived, make = TensorCache(), counted()
    values = [derived(torch.zeros(4), "a", make) for _ in range(200)]
    assert values == list(range(1, 201))


def test_values_of_dead_tensors_are_dropped():
    derived = TensorCache()
    for _ in range(1000):
        derived(torch.zeros(4), "a", object)
    gc.collect()
    assert len(derived._kept) < 200


def test_inference_tensors():
    derived, make = TensorCache(), counted()
    with torch.inference_mode():
        tensor = torch.zeros(4)
        assert derived(tensor, "a", make) == derived(tensor, "a", make) == 1


def test_column_order_is_that_of_the_stream(random_weight):
    weight = random_weight("trellis", (16, 50), min_rate=1, rate_bits=2)
    order = column_order(weight.spec, 50, weight.tensors)
    rates = weight.spec.rates(50, weight.tensors)
    assert torch.equal(order.columns.long(), torch.argsort(rates, stable=True))
    assert order.ends.tolist() == [int((rates <= rate).sum()) for rate in (1, 2, 3, 4)]
    assert column_order(weight.spec, 50, weight.tensors) is order


def test_column_order_of_one_rate(random_weight):
    weight = random_weight("additive", (16, 5), rate_bits=0, min_rate=2)
    order = column_order(weight.spec, 5, weight.tensors)
    assert order.columns.tolist() == [0, 1, 2, 3, 4]
    assert order.ends.tolist() == [5]


def test_rates_end_where_the_code_does(random_weight):
    weight = random_weight("trellis", (40, 5), state_bits=8, min_rate=2, rate_bits=1)
    assert list(weight.spec.rate_range) == [2, 3]
    narrow = random_weight("trellis", (40, 5), state_bits=12, min_rate=6, rate_bits=0)
    assert list(narrow.spec.rate_range) == [6]


def test_there_is_a_value_table_per_number_of_new_bits(random_weight):
    value_tables = pytest.importorskip("vqcompress.kernels.triton.trellis", exc_type=ImportError).value_tables
    weight = random_weight("trellis", (40, 5), min_rate=0, rate_bits=1)
    tables = value_tables(weight.spec, weight.tensors)
    assert tables.shape == (2, 4096)
    assert tables.dtype == torch.float16
    assert torch.equal(tables[1].float(), weight.spec.table(1, weight.tensors))
    halves = random_weight("trellis", (40, 5), min_rate=3, rate_bits=2, half_rates=True)  # 1.5 to 3 bits
    tables = value_tables(halves.spec, halves.tensors)
    assert [torch.equal(tables[i].float(), halves.spec.table(1 + i, halves.tensors)) for i in range(len(tables))] == [
        True
    ] * 3
