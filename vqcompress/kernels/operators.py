"""The torch operators ``vqcompress::linear`` and ``vqcompress::conv2d``: opaque to `torch.compile`, with gradients.

The backward pass decodes the weight again, so that no dense weight is kept between the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqcompress.kernels.packed_layout import layout_from_text
from vqcompress.kernels.precision import in_product_dtype
from vqcompress.kernels.table import choose_kernel, decode_case, product_case
from vqcompress.kernels.unfolded import convolution, is_unfolded
from vqcompress.kernels.weight_source import WeightSource
from vqcompress.matrix_view import from_transposed, matrix_shape


def multiply(
    x: Tensor, tensors: Sequence[Tensor], bias: Tensor | None, layout: str, source: WeightSource | None = None
) -> Tensor:
    """`linear` without the torch operator, whose overhead is tens of microseconds. No gradients, no tracing.

    The weight comes from ``source``, which remembers how it was made.
    """
    parsed = layout_from_text(layout)
    kernel = choose_kernel(parsed.spec, parsed.shape, product_case(x))
    if kernel.multiply is None:
        return in_product_dtype(x, lambda x: F.linear(x, dense_weight(x, tensors, layout, source), _as(bias, x)))
    named = dict(zip(parsed.names, tensors, strict=True))
    return kernel.multiply(x, parsed.spec, parsed.shape, named, bias)


@torch.library.custom_op("vqcompress::linear", mutates_args=())
def linear(x: Tensor, tensors: list[Tensor], bias: Tensor | None, layout: str) -> Tensor:
    """``x [..., in]`` -> ``[..., out]``; ``tensors`` and ``layout`` as in `vqcompress.kernels.packed_layout`."""
    return multiply(x, tensors, bias, layout)


@linear.register_fake
def _(x: Tensor, tensors: list[Tensor], bias: Tensor | None, layout: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], layout_from_text(layout).shape[0])


def convolve(
    x: Tensor,
    tensors: Sequence[Tensor],
    bias: Tensor | None,
    layout: str,
    geometry: Sequence[Sequence[int]],
    source: WeightSource | None = None,
) -> Tensor:
    """`conv2d` without the torch operator, see `multiply`; ``geometry`` are stride, padding and dilation."""
    shape = layout_from_text(layout).shape
    matrix = is_unfolded(x, shape)

    def product(x: Tensor) -> Tensor:
        weight = dense_weight(x, tensors, layout, source, matrix)
        return convolution(x, weight, _as(bias, x), shape[2:], geometry)

    return in_product_dtype(x, product)


@torch.library.custom_op("vqcompress::conv2d", mutates_args=())
def conv2d(
    x: Tensor,
    tensors: list[Tensor],
    bias: Tensor | None,
    layout: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """``x [batch, in, height, width]`` -> ``[batch, out, …]``."""
    return convolve(x, tensors, bias, layout, (stride, padding, dilation))


@conv2d.register_fake
def _(
    x: Tensor,
    tensors: list[Tensor],
    bias: Tensor | None,
    layout: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    return F.conv2d(x, x.new_empty(layout_from_text(layout).shape), None, stride, padding, dilation)


def dense_weight(
    x: Tensor, tensors: Sequence[Tensor], text: str, source: WeightSource | None = None, matrix: bool = False
) -> Tensor:
    """The weight in the dtype of ``x``, on its device; with ``matrix`` a filter is one ``[out, in kh kw]`` as well.
    Valid until the thread decodes the next one."""
    layout = layout_from_text(text)
    named = dict(zip(layout.names, tensors, strict=True))
    shape = matrix_shape(layout.shape) if matrix else layout.shape
    kernel = choose_kernel(layout.spec, shape, decode_case(x.device, x.dtype))

    def decode() -> Tensor:
        if kernel.dense_weight is not None:
            return kernel.dense_weight(layout.spec, shape, named, x.dtype)
        return from_transposed(kernel.decode_transposed(layout.spec, shape, named, x.dtype), shape)

    def prepare() -> Callable[[], Tensor] | None:
        return kernel.prepare and kernel.prepare(layout.spec, shape, named, x.dtype)

    return decode() if source is None else source.get(x, tensors, decode, prepare, matrix)


def _as(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, tensors, bias, layout, *geometry = inputs
    ctx.save_for_backward(*tensors)
    ctx.layout, ctx.geometry = layout, geometry
    ctx.x_shape = x.shape
    ctx.bias_dtype = None if bias is None else bias.dtype


def _linear_backward(ctx: Any, grad: Tensor) -> tuple:
    grad_x = grad_bias = None
    tensors = list(ctx.saved_tensors)  # read once: gradient checkpointing does not allow reading it twice
    if ctx.needs_input_grad[0]:
        grad_x = multiply_back(grad, tensors, ctx.layout)
    if ctx.needs_input_grad[2]:
        grad_bias = grad.flatten(0, -2).sum(0).to(ctx.bias_dtype)
    return grad_x, [None] * len(tensors), grad_bias, None


def _conv2d_backward(ctx: Any, grad: Tensor) -> tuple:
    grad_x = grad_bias = None
    tensors = list(ctx.saved_tensors)
    if ctx.needs_input_grad[0]:
        grad_x = convolve_back(grad, tensors, ctx.layout, list(ctx.x_shape), *ctx.geometry)
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3)).to(ctx.bias_dtype)
    return grad_x, [None] * len(tensors), grad_bias, None, None, None, None


linear.register_autograd(_linear_backward, setup_context=_remember)
conv2d.register_autograd(_conv2d_backward, setup_context=_remember)


@torch.library.custom_op("vqcompress::multiply_back", mutates_args=())
def multiply_back(grad: Tensor, tensors: list[Tensor], layout: str) -> Tensor:
    """Gradient of `linear` with respect to its input: ``grad [..., out]`` -> ``[..., in]``."""
    return in_product_dtype(grad, lambda grad: grad @ dense_weight(grad, tensors, layout))


@multiply_back.register_fake
def _(grad: Tensor, tensors: list[Tensor], layout: str) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], layout_from_text(layout).shape[1])


@torch.library.custom_op("vqcompress::convolve_back", mutates_args=())
def convolve_back(
    grad: Tensor,
    tensors: list[Tensor],
    layout: str,
    x_shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Gradient of `conv2d` with respect to its input, ``[batch, in, height, width]``."""

    def product(grad: Tensor) -> Tensor:
        weight = dense_weight(grad, tensors, layout)
        return torch.nn.grad.conv2d_input(x_shape, weight, grad, stride, padding, dilation).contiguous()

    return in_product_dtype(grad, product)


@convolve_back.register_fake
def _(
    grad: Tensor,
    tensors: list[Tensor],
    layout: str,
    x_shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    return grad.new_empty(x_shape)
