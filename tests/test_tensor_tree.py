"""Nested arguments move as a whole, and a copy shares nothing."""

from __future__ import annotations

import torch

from vqcompress.tensor_tree import to_device


def test_structure_and_values_stay():
    tensor = torch.ones(2, requires_grad=True)
    value = {"a": [tensor, 3], "b": (None, {"c": tensor})}
    moved = to_device(value, "cpu", copy=True)
    assert moved["a"][1:] == [3]
    assert isinstance(moved["b"], tuple)
    for found in (moved["a"][0], moved["b"][1]["c"]):
        assert torch.equal(found, tensor)
        assert not found.requires_grad
        assert found.data_ptr() != tensor.data_ptr()


def test_without_copy_nothing_is_copied():
    tensor = torch.ones(2)
    assert to_device([tensor], "cpu")[0].data_ptr() == tensor.data_ptr()


def test_tensors_reach_the_device():
    assert to_device({"a": [torch.ones(2)]}, "meta")["a"][0].is_meta
