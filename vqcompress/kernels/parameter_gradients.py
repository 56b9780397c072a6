"""From the gradient of a dense weight to those of the numbers that it was decoded from: the transpose of decoding.

A table's gradient gathers those of all weights that read it (scatter-add by state or code), a row scale's is a sum along the
row. On the CPU compiled loops do it from the packed bytes; elsewhere the reference decoder is differentiated.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.formats.rotation import rotate
from vqcompress.kernels import column_scales as gained
from vqcompress.kernels import reference
from vqcompress.kernels import rotation as rotated
from vqcompress.kernels.cpu import decode as cpu_numba
from vqcompress.matrix_view import Shape, matrix_shape


def parameter_gradients(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], grad: Tensor
) -> dict[str, Tensor]:
    """Name -> gradient of every companion (``scale``, ``codebooks``, ``group_scale``), float32, in the companion's shape.

    ``grad [columns, rows]`` is the gradient of ``Wᵀ``. Companions that a format does not differentiate in are left out.
    """
    if gained.has_gains(spec):
        grad = grad.float() * gained.column_gains(shape, tensors)[:, None]
        spec = gained.without_gains(spec)
    if rotated.is_rotated(spec):
        spec, block = rotated.without_rotation(spec)
        grad = rotate(grad.float(), block)
    if not cpu_numba.unsupported_reason(spec, shape, grad):
        return _compiled_gradients(spec, shape, tensors, grad.float().contiguous())
    return _reference_gradients(spec, shape, tensors, grad.float())


def _reference_gradients(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], grad: Tensor
) -> dict[str, Tensor]:
    leaves = {name: t.detach().float().requires_grad_() for name, t in tensors.items() if t.is_floating_point()}
    with torch.enable_grad():
        decoded = reference.decode_transposed(spec, shape, {**tensors, **leaves})
    found = torch.autograd.grad(decoded, list(leaves.values()), grad, allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _compiled_gradients(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], grad: Tensor
) -> dict[str, Tensor]:
    from vqcompress.kernels.cpu import gradients as cpu_gradient_loops
    from vqcompress.kernels.cpu import loops as cpu_loops

    rows, columns = matrix_shape(shape)
    if isinstance(spec, ScalarSpec):
        codes, zeros, scales, bits, group_size = cpu_numba.scalar_arguments(spec, tensors)
        group_scale = np.zeros(scales.shape)
        cpu_gradient_loops.scalar(grad.numpy(), codes, zeros, bits, group_size, group_scale)
        return {"group_scale": _float(group_scale)}
    if isinstance(spec, AdditiveSpec):
        arguments = cpu_numba.additive_arguments(cpu_loops, spec, tensors, rows, columns)
        loop = cpu_gradient_loops.additive
    else:
        assert isinstance(spec, TrellisSpec)
        arguments = cpu_numba.trellis_arguments(cpu_loops, spec, tensors, rows, columns)
        loop = cpu_gradient_loops.trellis
    books, scale = np.zeros(arguments[3].shape), np.zeros(rows)
    loop(grad.numpy(), *arguments, books, scale)
    found = {"scale": _float(scale if spec.row_scales else scale.sum(keepdims=True))}
    if isinstance(spec, TrellisSpec):
        books = books[np.array(spec.codebook_rates, dtype=int) - 1]
    return {**found, "codebooks": _float(books)} if "codebooks" in tensors else found


def _float(sums: np.ndarray) -> Tensor:
    return torch.from_numpy(sums).float()
