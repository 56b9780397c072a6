"""Additive codes: pack, then decode, for any geometry, against sums of codewords written out."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqcompress.bitpack import pack
from vqcompress.formats import AdditiveSpec, spec_from_dict, spec_to_dict
from vqcompress.formats.rates import join_blocks, pack_rates
from vqcompress.quantized_weight import QuantizedWeight


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_decode_is_the_sum_of_codewords(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 12))
    dimension, code_bits = data.draw(st.sampled_from([4, 8, 16])), data.draw(st.integers(4, 12))
    codebooks, rate_bits = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 2))
    min_rate = data.draw(st.integers(0, codebooks))
    row_scales, is_shared = data.draw(st.booleans()), data.draw(st.booleans())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    rates = min_rate + integers(min(1 << rate_bits, codebooks - min_rate + 1), columns)
    codes = integers(1 << code_bits, columns, -(-rows // dimension), codebooks)
    books = torch.randn(codebooks, 1 << code_bits, dimension, generator=generator).half()
    scale = torch.rand(rows if row_scales else 1, generator=generator).half()
    blocks = {
        rate: pack(codes[rates == rate][:, :, :rate].flatten(1), code_bits)
        if rate
        else torch.zeros(0, 0, dtype=torch.int8)
        for rate in set(rates.tolist())
    }
    stream = join_blocks(blocks)
    tensors = {"weight": stream, "scale": scale}
    if rate_bits:
        tensors["rates"] = pack_rates(rates, min_rate, rate_bits)
    if not is_shared:
        tensors["codebooks"] = books
    else:
        rates = rates if rate_bits else torch.full((columns,), min_rate)
    name = "codebooks" if is_shared else None
    spec = AdditiveSpec(
        dimension, code_bits, codebooks, min_rate, rate_bits if rate_bits else 0, name, row_scales, stream.numel()
    )
    shared = {"codebooks": books} if is_shared else {}
    quantized = QuantizedWeight(spec_from_dict(spec_to_dict(spec)), (rows, columns), tensors, shared)

    expected = torch.zeros(rows, columns)
    for column in range(columns):
        vectors = torch.zeros(codes.shape[1], dimension)
        for level in range(int(rates[column])):
            vectors = vectors + books[level].float()[codes[column, :, level]]
        expected[:, column] = vectors.flatten()[:rows] * scale.float()
    assert torch.equal(quantized.decode(), expected)
    assert {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()} == spec.tensor_shapes(rows, columns)


def test_gradients_reach_codebooks_and_scales() -> None:
    spec = AdditiveSpec(4, 4, 1, 1, 0, None, True, 6)
    tensors = {
        "weight": pack(torch.randint(16, (6, 2), generator=torch.Generator().manual_seed(0)), 4).reshape(1, -1),
        "scale": torch.ones(8, dtype=torch.float16).requires_grad_(),
        "codebooks": torch.ones(1, 16, 4, dtype=torch.float16).requires_grad_(),
    }
    spec.decode_transposed(8, 6, tensors).square().sum().backward()
    assert tensors["scale"].grad.abs().sum() > 0
    assert tensors["codebooks"].grad.abs().sum() > 0
