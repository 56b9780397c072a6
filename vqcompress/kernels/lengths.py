"""Lengths of what a kernel is about to read, compared with what its spec says, before any loop runs.

The compiled loops follow addresses and check nothing. What they read is a function of the spec, the shape and the
column rates; `check_lengths` and `check_rates` make sure that the tensors hold that much. A layer that was loaded has
passed the gate (`vqcompress.formats.gate`) already; this guards against a spec and tensors that were put together by
other means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from vqcompress.errors import CheckpointError
from vqcompress.formats import AdditiveSpec, FormatSpec, TrellisSpec
from vqcompress.formats.gate import check_layer, check_shape
from vqcompress.kernels.tensor_cache import TensorCache
from vqcompress.matrix_view import Shape, matrix_shape

_RATES: TensorCache[None] = TensorCache()


def check_lengths(spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` unless each tensor that the format reads is there in its shape.

    Codes may have the shape of a Conv2d's. Bytes must lie in sequence, as loops read them from their address;
    parameters, which may be in training, can have any dtype. Column rates must ask for no more codes than there are.
    """
    for name, size, is_packed in _sizes(spec, shape):
        tensor = tensors.get(name)
        if tensor is None:
            raise _wrong(spec, shape, f"has no {name}")
        if tensor.shape != size and not (name == "weight" and tensor.numel() == math.prod(size)):
            raise _wrong(spec, shape, f"has {name} of shape {tuple(tensor.shape)}, not {size}")
        if is_packed and (tensor.element_size() != 1 or not tensor.is_contiguous()):
            raise _wrong(spec, shape, f"has {name} in {tensor.dtype}, not bytes in sequence")
    if isinstance(spec, AdditiveSpec | TrellisSpec) and "rates" in tensors:
        rates = tensors["rates"]
        _RATES(rates, (spec, shape), lambda: _check_rates(spec, shape, rates))


def check_input(x: Tensor, shape: Shape, bias: Tensor | None) -> None:
    """Raise `ValueError` unless ``x [..., columns]`` and ``bias [outputs]`` go with a weight of this shape."""
    outputs, columns = matrix_shape(shape)
    if x.dim() == 0 or x.shape[-1] != columns:
        raise ValueError(f"an input of shape {tuple(x.shape)} does not go with a weight of {outputs}x{columns}")
    if bias is not None and bias.numel() != outputs:
        raise ValueError(f"a bias of {bias.numel()} elements does not go with a weight of {outputs}x{columns}")


def check_gradient(grad: Tensor, shape: Shape) -> None:
    """Raise `ValueError` unless ``grad`` is ``[columns, outputs]``."""
    outputs, columns = matrix_shape(shape)
    if tuple(grad.shape) != (columns, outputs):
        raise ValueError(f"a gradient of shape {tuple(grad.shape)} does not go with a weight of {outputs}x{columns}")


@lru_cache(maxsize=8192)
def _sizes(spec: FormatSpec, shape: Shape) -> tuple[tuple[str, tuple[int, ...], bool], ...]:
    """``(name, shape, whether it is packed bytes)`` of each tensor that the format reads."""
    check_layer(spec, check_shape(tuple(shape)))
    sizes = spec.tensor_shapes(*matrix_shape(shape))
    found = [(name, size, dtype == torch.int8) for name, (size, dtype) in sizes.items()]
    if spec.codebook is not None:
        found.append(("codebooks", spec.codebook_shape, False))
    return tuple(found)


def _check_rates(spec: AdditiveSpec | TrellisSpec, shape: Shape, rates: Tensor) -> None:
    if problem := spec.content_problem("rates", rates, *matrix_shape(shape)):
        raise _wrong(spec, shape, f"has column rates that cannot be its own: the tensor {problem}")


def _wrong(spec: FormatSpec, shape: Shape, problem: str) -> CheckpointError:
    return CheckpointError(
        f"a packed {spec.format} weight of shape {tuple(shape)} {problem}; its file is not as it was written, run "
        "`vqcompress verify` on its folder"
    )
