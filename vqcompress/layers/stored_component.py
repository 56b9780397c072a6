"""The gate of a whole component: what its config says of packed layers, against the headers of its weight files.

`vqcompress.formats.gate` checks one layer. Here all layers of a component meet its files, before the network is built:
every tensor is there in its shape and dtype, and the weights that the layers stand for are not out of proportion to
the bytes that are stored for them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch

from vqcompress.component_files import StoredTensor
from vqcompress.errors import CheckpointError
from vqcompress.formats.gate import expected_tensors, header_problem
from vqcompress.layers.description import LayerSpecs
from vqcompress.layers.shared_codebooks import SHARED_NAME
from vqcompress.network_size import NetworkSize
from vqcompress.safetensors_header import ELEMENT_BYTES

WEIGHTS_PER_BYTE = 64
"""An eighth of a bit a weight, in the average of a component: less than any budget leaves."""
SPARE_WEIGHTS = 1 << 22
"""Layers that are all zero take next to no bytes."""

Headers = Mapping[str, StoredTensor]


def header_problems(description: Mapping[str, Any], specs: LayerSpecs, headers: Headers) -> Iterator[tuple[str, str]]:
    """``(key, problem)`` of each tensor of packed layers that is missing or of another shape or dtype."""
    for key, expected in expected_headers(description, specs):
        found = headers.get(key)
        if problem := "is missing" if found is None else header_problem(expected, found.shape, found.packed_dtype):
            yield key, problem


def expected_headers(
    description: Mapping[str, Any], specs: LayerSpecs
) -> Iterator[tuple[str, tuple[tuple[int, ...], torch.dtype]]]:
    """Key, shape and dtype of every tensor of packed layers, shared codebooks first."""
    for name, shape in description["shared"].items():
        yield f"{SHARED_NAME}.{name}", (tuple(shape), torch.float16)
    for layer, (spec, shape) in specs.items():
        for name, expected in expected_tensors(spec, shape).items():
            yield f"{layer}.{name}", expected


def network_size(specs: LayerSpecs, headers: Headers, where: str) -> NetworkSize:
    """The size of the dense network that these files stand for.

    Raises `CheckpointError` where packed layers stand for more weights than their bytes can mean.
    """
    packed = sum(math.prod(shape) for _, shape in specs.values())
    elements = [math.prod(tensor.shape) for tensor in headers.values()]
    widths = [ELEMENT_BYTES.get(tensor.dtype, 1) for tensor in headers.values()]
    stored = sum(map(operator.mul, elements, widths))
    if packed > WEIGHTS_PER_BYTE * stored + SPARE_WEIGHTS:
        raise CheckpointError(
            f"{where} describes packed layers of {packed} weights, for which {stored} bytes are stored; it is not as "
            "it was written, download the folder again"
        )
    shapes = [tensor.shape for tensor in headers.values()] + [shape for _, shape in specs.values()]
    longest = max(chain.from_iterable(shapes), default=0)
    return NetworkSize(len(shapes), packed + sum(elements), longest)
