"""Packing in parts: the bytes do not depend on how many numbers are packed at once, and memory does not grow."""

from __future__ import annotations

import math

import pytest
import torch

from vqcompress.bitpack import AT_ONCE, pack, unpack


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("shape", [(2 * AT_ONCE // 1000 + 3, 1000), (3, AT_ONCE + 5), (2, 3, 9), (7,), (0, 4), (4, 0)])
def test_each_row_is_packed_as_if_it_were_alone(shape, bits):
    numbers = torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(1))
    packed = pack(numbers, bits)
    assert packed.shape == (*shape[:-1], math.ceil(shape[-1] * bits / 8))
    assert torch.equal(unpack(packed, bits, shape[-1]), numbers.int())
    if len(shape) == 2 and all(shape):
        for row in (0, len(numbers) // 2, -1):
            text = "".join(f"{number:0{bits}b}" for number in numbers[row].tolist())
            expected = int(text.ljust(8 * packed.shape[1], "0"), 2).to_bytes(packed.shape[1], "big")
            assert packed[row].numpy().tobytes() == expected


class Largest(torch.overrides.TorchFunctionMode):
    """The bytes of the largest tensor that an operation returned."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_function__(self, function, kinds, arguments=(), keywords=None):
        found = function(*arguments, **(keywords or {}))
        if isinstance(found, torch.Tensor):
            self.bytes = max(self.bytes, found.nbytes)
        return found


def test_no_tensor_on_the_way_is_larger_than_a_part_needs():
    numbers = torch.zeros(4000, 1000, dtype=torch.int32)
    with Largest() as most:
        unpack(pack(numbers, 4), 4, 1000)
    assert most.bytes <= max(numbers.nbytes, 8 * 8 * AT_ONCE)
