"""Weights that the CPU decodes into memory of its own, against the format's decoder."""

from __future__ import annotations

from threading import Thread

import pytest
import torch

from random_weights import Extras, additive, scalar, trellis
from vqcompress.errors import CheckpointError
from vqcompress.kernels import reference
from vqcompress.kernels.cpu.dense import dense_weight
from vqcompress.kernels.cpu.scratch import KEPT_BYTES, release_scratch, scratch
from vqcompress.matrix_view import from_transposed

SHAPES = [(32, 48), (48, 7), (64, 3, 3, 3), (16, 40, 1, 1), (80, 2, 3, 1)]
EXTRAS = [
    Extras(),
    Extras(column_scales=True, row_scales=False),
    Extras(rotation=8),
    Extras(outliers=5),
    Extras(column_scales=True, outliers=3, rotation=4, learned=True),
]
ODD = [(33, 19), (17, 5, 3, 3), (1, 7), (5, 1, 1, 1)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weights():
    for shape in SHAPES:
        for extras in EXTRAS:
            yield trellis(shape, 12, (6, 4, 0), extras)
            yield trellis(shape, 8, (3, 2, 5), extras)
            if not (extras.rotation or extras.learned):
                yield additive(shape, 8, 8, 3, extras)
    for block in (1, 2, 16, 32, 64, 256):
        yield trellis((256, 5), 8, (6, 5), Extras(column_scales=block == 16, rotation=block))
    for shape in ODD:
        yield trellis(shape, 12, (6, 1, 7), Extras(column_scales=True, outliers=1))
        yield additive(shape, 3, 5, 2, Extras(column_scales=True, outliers=1))
        yield scalar(shape, 3, 4)
        yield scalar(shape, 4, 8, 6)


def test_dense_weights_equal_the_reference_bit_for_bit():
    for index, (spec, shape, tensors) in enumerate(weights()):
        for dtype in DTYPES if index % 4 == 0 else [DTYPES[index % 3]]:
            expected = from_transposed(reference.decode_transposed(spec, shape, tensors, dtype), shape)
            found = dense_weight(spec, shape, tensors, dtype)
            assert found.dtype == dtype
            assert found.shape == expected.shape
            assert torch.equal(found, expected), (spec, shape, dtype)


def test_filters_lie_in_sequence_and_matrices_as_columns():
    assert dense_weight(*trellis((32, 3, 3, 3), 12, (6,)), torch.float32).is_contiguous()
    assert dense_weight(*trellis((32, 48), 12, (6,)), torch.bfloat16).t().is_contiguous()


def test_layers_decode_into_the_same_memory():
    large, small = trellis((32, 48), 12, (6,)), trellis((32, 20), 12, (4,))
    where = dense_weight(*large, torch.float32).data_ptr()
    assert dense_weight(*small, torch.float32).data_ptr() == where
    assert dense_weight(*large, torch.float32).data_ptr() == where


def test_every_thread_has_its_own():
    weight, other = trellis((32, 48), 12, (6,)), trellis((32, 48), 12, (4,))
    found = dense_weight(*weight, torch.float32)
    before = found.clone()
    thread = Thread(target=lambda: dense_weight(*other, torch.float32))
    thread.start()
    thread.join()
    assert torch.equal(found, before)


def test_memory_goes_back():
    first = scratch("test", (100,), torch.float32)
    assert scratch("test", (50,), torch.float16).data_ptr() == first.data_ptr()
    large = KEPT_BYTES // 4 + 1
    assert scratch("test", (large,), torch.float32).shape == (large,)
    assert scratch("test", (50,), torch.float16).data_ptr() == first.data_ptr()
    release_scratch()
    first.fill_(7)
    again = scratch("test", (100,), torch.float32).fill_(1)
    assert bool((first == 7).all())
    assert again.data_ptr() != first.data_ptr()


def test_memory_made_in_inference_mode_serves_training():
    release_scratch()
    weight = trellis((32, 48), 12, (6,), Extras(outliers=2))
    with torch.inference_mode():
        expected = dense_weight(*weight, torch.float16).clone()
    assert torch.equal(dense_weight(*weight, torch.float16), expected)


def test_outliers_outside_are_refused_before_anything_is_written():
    spec, shape, tensors = trellis((32, 48), 12, (6,), Extras(outliers=2))
    tensors["outlier_positions"] = torch.tensor([3, 32 * 48], dtype=torch.int32)
    with pytest.raises(CheckpointError, match="outliers"):
        dense_weight(spec, shape, tensors, torch.float32)
