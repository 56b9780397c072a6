"""The gate for many tensors at once: scales and rates are small, and a component has thousands of them.

A screening only clears. Tensors that it cannot clear go to `vqcompress.formats.gate.tensor_problem`, which says what is
wrong with each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from vqcompress.formats import UNCHECKED_CONTENTS, FormatSpec
from vqcompress.formats.finite import EXPONENT
from vqcompress.formats.rates import RatedSpec, counts_problem
from vqcompress.matrix_view import matrix_shape

RATES = "rates"
AT_ONCE = 1 << 17  # elements; what they need beside themselves stays in the cache

Key = TypeVar("Key", bound=Hashable)


class Stored(NamedTuple):
    """A tensor ``name`` of a packed weight with this spec and dense shape, in its stored shape and dtype already."""

    spec: FormatSpec
    shape: tuple[int, ...]
    name: str
    tensor: Tensor


def not_cleared(stored: Mapping[Key, Stored]) -> Iterator[Key]:
    """Keys of the tensors whose contents may be wrong; of those in `UNCHECKED_CONTENTS`, none can be."""
    scales: dict[Key, Stored] = {}
    rates: defaultdict[tuple[int, int], dict[Key, Stored]] = defaultdict(dict)
    for key, found in stored.items():
        _, shape, name, tensor = found
        if name in UNCHECKED_CONTENTS:
            continue
        if not tensor.is_cpu or tensor.numel() > AT_ONCE:  # a large one takes its own time anyway
            yield key
        elif name == RATES:
            rates[matrix_shape(shape)[1], cast(RatedSpec, found.spec).rate_bits][key] = found
        elif tensor.dtype == torch.float16:
            scales[key] = found
        else:
            yield key
    for some in _in_portions(scales, AT_ONCE):
        if not _all_finite([found.tensor for found in some.values()]):
            yield from some
    for (columns, bits), alike in rates.items():
        for some in _in_portions(alike, AT_ONCE // 8):
            yield from _wrong_rates(some, columns, bits)


def _all_finite(tensors: list[Tensor]) -> bool:
    bits = _flatten_dense_tensors(tensors).view(torch.int16).numpy()
    return not bool(((bits & EXPONENT) == EXPONENT).any())


def _wrong_rates(alike: Mapping[Key, Stored], columns: int, bits: int) -> Iterator[Key]:
    """Keys of the rates, of as many columns and bits each, that `counts_problem` has something to say about."""
    packed = _flatten_dense_tensors([found.tensor for found in alike.values()]).view(torch.uint8).numpy()
    planes = np.unpackbits(packed.reshape(len(alike), -1), axis=1, count=columns * bits)
    counts = _counts(planes.reshape(len(alike), columns, bits)).tolist()
    for (key, found), own in zip(alike.items(), counts, strict=True):
        if counts_problem(own, cast(RatedSpec, found.spec), matrix_shape(found.shape)[0]):
            yield key


def _counts(planes: np.ndarray) -> np.ndarray:
    """Bits ``[n, columns, bits]`` -> how many columns have each number, ``[n, 2**bits]``."""
    columns, bits = planes.shape[1:]
    if bits == 1:
        ones = np.count_nonzero(planes, axis=(1, 2))
        return np.stack([columns - ones, ones], axis=1)
    numbers = np.zeros(planes.shape[:2], np.uint8)
    for bit in range(bits):
        numbers = numbers << 1 | planes[:, :, bit]
    return np.stack([np.count_nonzero(numbers == number, axis=1) for number in range(1 << bits)], axis=1)


def _in_portions(stored: Mapping[Key, Stored], most: int) -> Iterator[dict[Key, Stored]]:
    """``stored`` in parts of about ``most`` elements."""
    portion: dict[Key, Stored] = {}
    total = 0
    for key, found in stored.items():
        portion[key] = found
        total += found.tensor.numel()
        if total >= most:
            yield portion
            portion, total = {}, 0
    if portion:
        yield portion
