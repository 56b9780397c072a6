"""Decode, multiply and convolve with packed weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vqcompress.formats import FormatSpec
from vqcompress.kernels import operators, reference
from vqcompress.kernels.learning import learning_conv2d, learning_linear
from vqcompress.kernels.packed_layout import ConvGeometry, PackedLayout, layout_to_text
from vqcompress.kernels.table import choose_kernel, decode_case
from vqcompress.kernels.weight_source import WeightSource, is_plain
from vqcompress.matrix_view import Shape, from_transposed


def decode(spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The dense weight of ``shape`` (``[out, in]`` or ``[out, in, kh, kw]``) in ``dtype``.

    ``tensors`` are the codes, as ``weight``, and their quantization parameters, including a shared codebook.
    Differentiable in the parameters if one of them requires a gradient.
    """
    if _learns(tensors):
        return from_transposed(reference.decode_transposed(spec, shape, tensors, dtype), shape)
    kernel = choose_kernel(spec, shape, decode_case(tensors["weight"].device, dtype))
    return from_transposed(kernel.decode_transposed(spec, shape, tensors, dtype), shape)


def linear(x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """``x [..., in]`` times the packed weight ``[out, in]``, plus ``bias [out]``: ``[..., out]`` in ``x``'s dtype.

    Differentiable in ``x``, ``bias`` and the quantization parameters. No dense weight is kept for the backward pass.
    """
    return packed_linear(x, _text(spec, shape, tensors), tensors, bias)


def packed_linear(
    x: Tensor, layout: str, tensors: Mapping[str, Tensor], bias: Tensor | None, source: WeightSource | None = None
) -> Tensor:
    """`linear` with the geometry as text. A layer creates this text once.

    The weight comes from ``source``, unless gradients are wanted or the call is traced.
    """
    x = _autocast(x)
    if _learns(tensors):
        _drop(source)
        return learning_linear(x, layout, tensors, bias)
    if is_plain(x, bias):
        return operators.multiply(x, list(tensors.values()), bias, layout, source)
    return operators.linear(x, list(tensors.values()), bias, layout)


def conv2d(
    x: Tensor,
    spec: FormatSpec,
    shape: Shape,
    tensors: Mapping[str, Tensor],
    bias: Tensor | None,
    geometry: ConvGeometry = ConvGeometry(),  # noqa: B008 - a tuple
) -> Tensor:
    """``x [batch, in, height, width]`` convolved with the packed weight ``[out, in, kh, kw]``. See `linear`."""
    return packed_conv2d(x, _text(spec, shape, tensors), tensors, bias, geometry)


def packed_conv2d(
    x: Tensor,
    layout: str,
    tensors: Mapping[str, Tensor],
    bias: Tensor | None,
    geometry: ConvGeometry,
    source: WeightSource | None = None,
) -> Tensor:
    """`conv2d` with the geometry as text. A layer creates this text once. ``source`` as in `packed_linear`."""
    x = _autocast(x)
    if _learns(tensors):
        _drop(source)
        return learning_conv2d(x, layout, tensors, bias, geometry)
    if is_plain(x, bias):
        return operators.convolve(x, list(tensors.values()), bias, layout, geometry, source)
    return operators.conv2d(x, list(tensors.values()), bias, layout, *map(list, geometry))


def _drop(source: WeightSource | None) -> None:
    """A weight that is being trained is decoded in every call."""
    if source is not None:
        source.drop()


def _autocast(x: Tensor) -> Tensor:
    """``x`` cast as autocast does it for torch's own layers. Autocast does not apply to our operators."""
    if not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def _learns(tensors: Mapping[str, Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors.values())


def _text(spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor]) -> str:
    return layout_to_text(PackedLayout(spec, shape, tuple(tensors)))
