"""Scalar codes: pack, then decode, for any geometry, against the formula written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqcompress.bitpack import pack
from vqcompress.errors import CheckpointError
from vqcompress.formats import ScalarSpec, spec_from_dict, spec_to_dict
from vqcompress.quantized_weight import QuantizedWeight


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 40),
    bits=st.integers(2, 8),
    group_size=st.integers(1, 50),
    scale_bits=st.sampled_from([2, 3, 6, 8, 16]),
    seed=st.integers(0, 2**31),
)
def test_decode_is_the_affine_grid(
    rows: int, columns: int, bits: int, group_size: int, scale_bits: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    spec = ScalarSpec(bits, group_size, scale_bits)
    groups = spec.groups(columns)
    codes = torch.randint(0, 1 << bits, (columns, rows), generator=generator)
    zero = torch.randint(0, 1 << bits, (groups, rows), generator=generator)
    scale = torch.rand(groups, rows, generator=generator).half()
    tensors = {
        "weight": pack(codes, bits).reshape(1, -1),
        "group_scale": scale,
        "group_zero": pack(zero, bits),
    }
    if scale_bits != 16:
        factors, scale = torch.randint(0, 1 << scale_bits, (groups, rows), generator=generator), scale[0]
        tensors |= {"group_scale": pack(factors, scale_bits), "scale": scale}
        scale = factors * scale.float()
    quantized = QuantizedWeight(spec_from_dict(spec_to_dict(spec)), (rows, columns), tensors)

    expected = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            group = column // group_size
            step = float(scale[group, row])
            expected[row, column] = step * (int(codes[column, row]) - int(zero[group, row]))
    assert torch.equal(quantized.decode(), expected)
    assert {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()} == spec.tensor_shapes(rows, columns)


def test_scales_of_other_widths_are_refused() -> None:
    with pytest.raises(CheckpointError, match="scales of 9 bits"):
        spec_from_dict({"format": "scalar", "bits": 3, "group_size": 4, "scale_bits": 9})
