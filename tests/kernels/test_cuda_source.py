"""The CUDA kernels' source, run on this machine under AddressSanitizer: every format, rate and shape, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from every_weight import weights
from random_weights import Extras, additive, scalar, trellis
from tests.kernels.host_gpu import COMPILER, Batch
from vqcompress.kernels import reference
from vqcompress.kernels.cuda.groups import parts_of
from vqcompress.kernels.cuda.jobs import ALIGNED, TOGETHER, launches, size_problem
from vqcompress.kernels.cuda.operations import laid_out
from vqcompress.matrix_view import from_transposed, matrix_shape

EVERYTHING = Extras(column_scales=True, outliers=5, rotation=32)
GROUP = [
    trellis((64, 40), 12, (6, 4)),
    trellis((32, 4, 3, 3), 12, (6,)),
    trellis((96, 11), 12, (4, 6), EVERYTHING),
    scalar((64, 9), 3, 4),
    trellis((32, 3), 12, (4,)),
    additive((64, 9), 8, 8, 2),
]

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """Each case's output, put together from its launches, and whether every element was written once."""
    batch, counts = Batch(), []
    for weight, dtype in weights():
        counts.append(len(batch.add([weight], dtype)))
    several = [trellis((64, n), 12, (6, 4), Extras(column_scales=True)) for n in (3, 9, 2)]
    counts.append(len(batch.add(several, torch.bfloat16)))
    group = parts_of([shape for _, shape, _ in GROUP])
    counts.append(len(batch.add(GROUP, torch.bfloat16, group)))
    outputs, found, start = batch.run(tmp_path_factory.mktemp("host")), [], 0
    for count in counts:
        found.append(outputs[start : start + count])
        start += count
    return found, several


def assembled(outputs, weight, dtype):
    """One output of those of several launches, which wrote to different columns of it."""
    outputs_of, columns = matrix_shape(weight[1])
    width = dtype.itemsize * outputs_of
    rows = [output.reshape(columns, width) for output in outputs]
    written = np.stack([(row != 0xAA).any(1) for row in rows])
    assert (written.sum(0) == 1).all(), "a column that no launch wrote, or two did"
    whole = sum(np.where(mask[:, None], row, 0).astype(np.uint8) for mask, row in zip(written, rows, strict=True))
    return torch.from_numpy(whole.reshape(-1).copy()).view(dtype).view(columns, -1)


def test_every_format_rate_and_shape_equals_the_reference_bit_for_bit(decoded):
    for outputs, (weight, dtype) in zip(decoded[0], weights(), strict=False):
        expected = reference.decode_transposed(*weight, dtype)
        assert torch.equal(assembled(outputs, weight, dtype), expected), (weight[0], weight[1], dtype)


def test_a_group_is_its_weights_each_where_it_belongs(decoded):
    outputs, parts = decoded[0][-1], parts_of([shape for _, shape, _ in GROUP])
    assert len(outputs) == 4  # plain, transformed, additive, scalar: not one for each weight or rate
    buffers = torch.stack([torch.from_numpy(output.copy()).view(torch.bfloat16) for output in outputs])
    untouched = torch.from_numpy(np.full(2, 0xAA, np.uint8)).view(torch.bfloat16)
    written = buffers.view(torch.int16) != untouched.view(torch.int16)
    whole = torch.where(written, buffers, 0.0).sum(0, dtype=torch.float32).bfloat16()
    for (spec, shape, tensors), part in zip(GROUP, parts, strict=True):
        outputs_of, columns = matrix_shape(shape)
        own = slice(part.at, part.at + outputs_of * columns)
        assert (written[:, own].sum(0) <= 1).all()
        expected = reference.decode_transposed(spec, shape, tensors, torch.bfloat16)
        assert torch.equal(whole[own].view(columns, outputs_of), expected)
        assert torch.equal(part.transposed(whole), from_transposed(expected, shape))
        laid = part.weight(torch.empty(part.end, dtype=torch.bfloat16))
        assert laid.stride() == laid_out(expected, shape).stride()
        written[:, own] = False
    assert not written.any()


def test_one_launch_decodes_several_weights(decoded):
    (output,), several = decoded[0][-2], decoded[1]
    expected = torch.cat([reference.decode_transposed(*weight, torch.bfloat16).view(-1) for weight in several])
    assert torch.equal(torch.from_numpy(output.copy()).view(torch.bfloat16), expected)


def test_every_kernel_that_the_cases_need_is_one_of_few():
    made = [launch.kernel for weight, dtype in weights() for launch in launches([weight], dtype, [0])]
    assert set().union(*(kernel.sizes for kernel in made if kernel.format == "trellis")) == set(range(17))
    assert {len(kernel.sizes) for kernel in made} == {*map(len, TOGETHER), 1}
    assert {kernel.table for kernel in made} == {"SHARED_FLOAT", "SHARED_HALF", "GLOBAL_FLOAT", "GLOBAL_HALF", ""}
    assert {kernel.flags & ALIGNED for kernel in made} == {0, ALIGNED}
    assert len({kernel.symbol for kernel in made}) == len(set(made))


def test_codes_that_do_not_lie_on_a_word_take_the_other_kernel():
    spec, shape, tensors = trellis((64, 4), 12, (6,))
    codes = tensors["weight"]
    shifted = torch.empty(codes.numel() + 1, dtype=torch.int8)[1:].view(codes.shape).copy_(codes)
    (aligned,) = launches([(spec, shape, tensors)], torch.float32, [0])
    (other,) = launches([(spec, shape, tensors | {"weight": shifted})], torch.float32, [0])
    assert aligned.kernel.flags & ALIGNED
    assert not other.kernel.flags & ALIGNED


def test_an_empty_weight_needs_no_launch():
    assert launches([scalar((32, 0), 3, 4)], torch.float32, [0]) == []


@pytest.mark.parametrize(("shape", "refused"), [((21504, 3072), False), ((50000, 50000), True), ((32, 1 << 26), True)])
def test_sizes_beyond_32_bits_are_refused(shape, refused):
    spec, _, _ = scalar((32, 4), 3, 4)
    assert bool(size_problem(spec, shape)) == refused
