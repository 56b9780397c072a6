"""Packed linear and convolution with trainable quantization parameters: scales, codebooks and tables, not the codes.

Only the input and the packed tensors are kept between the passes; the backward pass decodes the weight again. If only
``scale`` is trained, the product is computed as ``y = s · (x V)``, and the gradient of ``scale`` needs no dense
gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.kernels import operators
from vqcompress.kernels.packed_layout import ConvGeometry, layout_from_text
from vqcompress.kernels.precision import in_product_dtype
from vqcompress.kernels.table import choose_kernel, decode_case
from vqcompress.kernels.transforms import is_rotated
from vqcompress.matrix_view import Shape


def learning_linear(x: Tensor, layout: str, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """``x [..., in] -> [..., out]``, differentiable in ``x``, ``bias`` and all quantization parameters."""
    if _only_scale_learns(x, layout, tensors):
        y = operators.linear(x, _without_scale(tensors), None, layout)
        return _plus(_times(y, tensors["scale"]), bias)
    return _Linear.apply(x, bias, layout, *tensors.values())


def learning_conv2d(
    x: Tensor, layout: str, tensors: Mapping[str, Tensor], bias: Tensor | None, geometry: ConvGeometry
) -> Tensor:
    """``x [batch, in, height, width] -> [batch, out, …]``, differentiable like `learning_linear`."""
    if _only_scale_learns(x, layout, tensors):
        y = operators.conv2d(x, _without_scale(tensors), None, layout, *map(list, geometry))
        return _plus(_times(y, tensors["scale"][:, None, None]), None if bias is None else bias[:, None, None])
    return _Conv2d.apply(x, bias, layout, geometry, *tensors.values())


def _only_scale_learns(x: Tensor, layout: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether only ``scale`` is trained and scales the outputs. False for float16: unscaled products would overflow."""
    learning = [name for name, tensor in tensors.items() if tensor.requires_grad]
    return learning == ["scale"] and x.dtype != torch.float16 and _scales_outputs(layout_from_text(layout).spec)


def _scales_outputs(spec: FormatSpec) -> bool:
    """Whether ``scale`` is a factor of the outputs: not with a rotation, with outliers, or in an unknown format."""
    if isinstance(spec, ScalarSpec):
        return spec.packed_scales
    return isinstance(spec, AdditiveSpec | TrellisSpec) and not (is_rotated(spec) or spec.outliers)


def _without_scale(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    return [torch.ones_like(t) if name == "scale" else t.detach() for name, t in tensors.items()]


def _times(y: Tensor, scale: Tensor) -> Tensor:
    return (y.float() * scale.float()).to(y.dtype)


def _plus(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.to(y.dtype)


def _dense(x: Tensor, layout: str, tensors: Mapping[str, Tensor]) -> Tensor:
    return operators.dense_weight(x, list(tensors.values()), layout)


def _as(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


def _named(layout: str, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return dict(zip(layout_from_text(layout).names, tensors, strict=True))


def parameter_gradients(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], grad: Tensor
) -> dict[str, Tensor]:
    """Gradients of the quantization parameters from the gradient of a dense weight, ``Wᵀ [columns, outputs]``.

    This is the transpose of decoding: a table's gradient is the scatter-add, by state or code, of the gradients of all
    weights decoded from it; an output scale's gradient is a sum over the columns. Returns name -> float32 gradient of
    every quantization parameter, in its shape. Parameters in which the format is not differentiable are omitted.
    """
    kernel = choose_kernel(spec, shape, decode_case(grad.device, grad.dtype))
    return kernel.parameter_gradients(spec, shape, tensors, grad)


def _needed_gradients(
    layout: str, named: Mapping[str, Tensor], needed: tuple[bool, ...], grad: Tensor
) -> list[Tensor | None]:
    """Gradients in the order of the layout's names; ``grad [columns, outputs]``."""
    parsed = layout_from_text(layout)
    found = parameter_gradients(parsed.spec, parsed.shape, named, grad)
    return [found[name].to(named[name].dtype) if wanted else None for name, wanted in zip(named, needed, strict=True)]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layout: str, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(x, *tensors)
        ctx.layout, ctx.bias_dtype = layout, None if bias is None else bias.dtype
        named = _named(layout, tensors)
        return in_product_dtype(x, lambda x: F.linear(x, _dense(x, layout, named), _as(bias, x)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, *tensors = ctx.saved_tensors
        (grad,), named = grads, _named(ctx.layout, tuple(tensors))
        needs_x, needs_bias, _, *needed = ctx.needs_input_grad
        samples = grad.flatten(0, -2)
        grad_x = in_product_dtype(grad, lambda grad: grad @ _dense(grad, ctx.layout, named)) if needs_x else None
        grad_bias = samples.sum(0).to(ctx.bias_dtype) if needs_bias else None
        parameters: list[Tensor | None] = [None] * len(tensors)
        if any(needed):
            parameters = _needed_gradients(ctx.layout, named, tuple(needed), x.flatten(0, -2).t() @ samples)
        return grad_x, grad_bias, None, *parameters


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, layout: str, geometry: ConvGeometry, *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, *tensors)
        ctx.layout, ctx.geometry, ctx.bias_dtype = layout, geometry, None if bias is None else bias.dtype
        named = _named(layout, tensors)
        return in_product_dtype(x, lambda x: F.conv2d(x, _dense(x, layout, named), _as(bias, x), *geometry))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, *tensors = ctx.saved_tensors
        (grad,), named = grads, _named(ctx.layout, tuple(tensors))
        needs_x, needs_bias, _, _, *needed = ctx.needs_input_grad
        grad_x = None
        if needs_x:
            weight = _dense(grad, ctx.layout, named)
            grad_x = torch.nn.grad.conv2d_input(x.shape, weight, grad, *ctx.geometry)
        grad_bias = grad.sum((0, 2, 3)).to(ctx.bias_dtype) if needs_bias else None
        parameters: list[Tensor | None] = [None] * len(tensors)
        if any(needed):
            shape = layout_from_text(ctx.layout).shape
            weight_grad = torch.nn.grad.conv2d_weight(x, shape, grad, *ctx.geometry)
            parameters = _needed_gradients(ctx.layout, named, tuple(needed), weight_grad.flatten(1).t())
        return grad_x, grad_bias, None, None, *parameters
