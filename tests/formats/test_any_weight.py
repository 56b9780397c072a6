"""Any weight of any format, drawn by hypothesis, against the slow decoder that is written from docs/FORMAT.md alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import random_additive, random_scalar, random_trellis
from tests.formats.test_golden_bytes import Page, numbers
from tests.fuzz.folders import rotated, with_column_scales_and_outliers, with_learned_tables
from tests.fuzz.guarded import guarded
from vqcompress.bitpack import pack, packed_bytes, unpack
from vqcompress.formats import check, spec_to_dict
from vqcompress.kernels import decode, linear
from vqcompress.matrix_view import matrix_shape
from vqcompress.quantized_weight import QuantizedWeight

Make = Callable[[Any, tuple[int, ...], int], QuantizedWeight]

SHAPES = st.one_of(
    st.tuples(st.integers(4, 40), st.integers(2, 24)),
    st.tuples(st.integers(4, 24), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)


def any_trellis(draw: Any, shape: tuple[int, ...], seed: int) -> QuantizedWeight:
    state_bits = draw(st.sampled_from((8, 12)))
    rate_bits = draw(st.integers(0, 2))
    least = draw(st.integers(0 if rate_bits else 1, state_bits // 2 - (1 << rate_bits) + 1))
    geometry = {"state_bits": state_bits, "min_rate": max(0, least), "rate_bits": rate_bits}
    return random_trellis(
        shape, seed=seed, **geometry, row_scales=draw(st.booleans()), tail=draw(st.sampled_from((0.0, 0.1)))
    )


def any_half_rates(draw: Any, shape: tuple[int, ...], seed: int) -> QuantizedWeight:
    rate_bits = draw(st.integers(0, 3))
    least = draw(st.integers(0 if rate_bits else 1, 8 - (1 << rate_bits) + 1))
    geometry = {"state_bits": 8, "min_rate": least, "rate_bits": rate_bits, "row_scales": draw(st.booleans())}
    return random_trellis(shape, seed=seed, **geometry, half_rates=True)


def any_additive(draw: Any, shape: tuple[int, ...], seed: int) -> QuantizedWeight:
    rate_bits = draw(st.integers(0, 2))
    least = draw(st.integers(0, 2))
    return random_additive(
        shape, seed=seed, dimension=draw(st.sampled_from((3, 4))), code_bits=draw(st.sampled_from((1, 5, 8, 9))),
        codebooks=least + (1 << rate_bits) - 1 or 1, min_rate=least or (0 if rate_bits else 1), rate_bits=rate_bits,
        row_scales=draw(st.booleans()), shared=draw(st.sampled_from((None, "book"))),
    )  # fmt: skip


def any_scalar(draw: Any, shape: tuple[int, ...], seed: int) -> QuantizedWeight:
    return random_scalar(
        shape, seed=seed, bits=draw(st.integers(1, 8)), group_size=draw(st.integers(1, 40)),
        scale_bits=draw(st.sampled_from((2, 5, 8, 16))),
    )  # fmt: skip


MAKERS: dict[str, Make] = {
    "trellis": any_trellis,
    "trellis with half rates": any_half_rates,
    "trellis with column scales and outliers": lambda draw, shape, seed: with_column_scales_and_outliers(shape, seed),
    "trellis with rotation": lambda draw, shape, seed: rotated(shape, seed),
    "trellis with learned tables": lambda draw, shape, seed: with_learned_tables(shape, seed),
    "additive": any_additive,
    "scalar": any_scalar,
}


class PageWithRotation(Page):
    """The page's section on `rotation` too."""

    def gains(self) -> np.ndarray:
        return np.ones(self.columns, np.float32) if self.spec.get("rotation") else super().gains()

    def with_outliers(self, weight: np.ndarray) -> np.ndarray:
        block = self.spec.get("rotation", 0)
        if not block:
            return super().with_outliers(weight)
        turned = weight.copy()
        for first in range(0, self.rows, block):
            turned[first : first + block] = walsh_hadamard(turned[first : first + block])
        turned = turned * np.float32(block**-0.5)
        turned[[odd(t) for t in range(self.rows)]] *= -1
        return super().with_outliers(turned * super().gains())


def walsh_hadamard(values: np.ndarray) -> np.ndarray:
    """Along the first axis, spans of 1, 2, 4, …: ``(a, b) -> (a + b, a - b)``."""
    values, span = values.copy(), 1
    while span < len(values):
        for start in range(0, len(values), 2 * span):
            for i in range(start, start + span):
                values[i], values[i + span] = values[i] + values[i + span], values[i] - values[i + span]
        span *= 2
    return values


def odd(t: int) -> bool:
    mixed = t * 2654435769 % 2**32
    mixed = ((mixed ^ mixed >> 15) * 2246822519) % 2**32
    return bool(mixed >> 31)


def as_page(weight: QuantizedWeight) -> np.ndarray:
    """The weight by the page, ``[rows, columns]``."""
    entries = {
        group: {
            name: {"hex": t.contiguous().numpy().tobytes().hex(), "shape": list(t.shape)} for name, t in tensors.items()
        }
        for group, tensors in (("tensors", weight.tensors), ("shared", weight.shared))
    }
    spec = spec_to_dict(weight.spec)
    return getattr(PageWithRotation({"spec": spec, "shape": list(weight.shape), **entries}), spec["format"])()


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_decoder_does_what_the_page_says(kind: str, data: st.DataObject) -> None:
    shape, seed = data.draw(SHAPES), data.draw(st.integers(0, 2**31))
    weight = MAKERS[kind](data.draw, shape, seed)
    check(weight.spec, shape, weight.state_dict())
    expected = as_page(weight)
    rows, columns = matrix_shape(shape)
    # The loops read from memory whose next byte would end the process.
    tensors = {name: guarded(tensor) for name, tensor in {**weight.tensors, **weight.shared}.items()}
    assert np.array_equal(weight.decode().reshape(rows, columns).numpy(), expected)
    assert np.array_equal(decode(weight.spec, shape, tensors, torch.float32).reshape(rows, columns).numpy(), expected)
    if len(shape) == 2:
        x = guarded(torch.randn(data.draw(st.integers(1, 3)), columns, generator=torch.Generator().manual_seed(seed)))
        product = linear(x, weight.spec, shape, tensors, None).numpy()
        assert np.allclose(
            product, x.numpy() @ expected.T, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(expected).max()))
        )


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 16), values=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=70))
def test_packing_is_a_string_of_bits(width: int, values: list[int]) -> None:
    values = [value % (1 << width) for value in values]
    packed = pack(torch.tensor(values)[None], width)
    assert packed.shape == (1, packed_bytes(len(values), width)) == (1, math.ceil(len(values) * width / 8))
    data = packed.numpy().tobytes()
    assert numbers(data, width, len(values)) == values
    assert unpack(packed, width, len(values))[0].tolist() == values
