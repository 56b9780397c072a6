"""Transforms of a decoded weight: column scales, the output rotation and outliers.

A weight is ``W = Rᵀ V diag(g) + S``, with ``V`` decoded from the codes, an orthogonal ``R``, the column scales ``g``
and few outliers ``S``. Any kernel for ``V`` can be used for ``W``. With few samples, ``x Wᵀ`` is computed as
``((x · g) Vᵀ) R + x Sᵀ``, at a fraction of the cost of transforming the weight. With many samples, the decoded weight
is transformed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from vqcompress.errors import CheckpointError
from vqcompress.formats import AdditiveSpec, FormatSpec, TrellisSpec
from vqcompress.formats.column_scales import COLUMN_SCALES_ON_DISK, unpack_column_scales
from vqcompress.formats.gate import check_layer
from vqcompress.formats.outliers import POSITIONS, VALUES, add_outliers, outlier_problem, places_of
from vqcompress.formats.rotation import rotate, unrotate
from vqcompress.kernels.kernel import Kernel
from vqcompress.kernels.lengths import check_input, check_lengths
from vqcompress.kernels.tensor_cache import TensorCache
from vqcompress.matrix_view import Shape, matrix_shape

_COLUMN_SCALES: TensorCache[Tensor] = TensorCache()
_PLACES: TensorCache[tuple[Tensor, Tensor]] = TensorCache()


def is_scaled(spec: FormatSpec) -> bool:
    """Whether the columns of the code have scales."""
    return isinstance(spec, AdditiveSpec | TrellisSpec) and spec.column_scales


def is_rotated(spec: FormatSpec) -> bool:
    """Whether the outputs of the code are rotated."""
    return isinstance(spec, TrellisSpec) and spec.rotation > 0


def has_outliers(spec: FormatSpec) -> bool:
    """Whether some weights are stored as outliers in addition to the code."""
    return isinstance(spec, AdditiveSpec | TrellisSpec) and spec.outliers > 0


def code_spec(spec: FormatSpec) -> FormatSpec:
    """The spec of ``V``: without column scales, rotation and outliers."""
    return _without_rotation(_without_column_scales(_without_outliers(spec)))


def transformed(kernel: Kernel, spec: FormatSpec) -> Kernel:
    """``kernel``, which supports the codes of ``spec``, extended to the whole weight."""
    kernel = _rotated(kernel) if is_rotated(spec) else kernel
    kernel = _scaled(kernel) if is_scaled(spec) else kernel
    return _with_outliers(kernel) if has_outliers(spec) else kernel


@lru_cache(maxsize=4096)
def _without_outliers(spec: FormatSpec) -> FormatSpec:
    return replace(spec, outliers=0) if has_outliers(spec) else spec


@lru_cache(maxsize=4096)
def _without_column_scales(spec: FormatSpec) -> FormatSpec:
    return replace(spec, column_scales=False) if is_scaled(spec) else spec


@lru_cache(maxsize=4096)
def _without_rotation(spec: FormatSpec) -> FormatSpec:
    return replace(spec, rotation=0) if is_rotated(spec) else spec


def column_factors(shape: Shape, tensors: Mapping[str, Tensor]) -> Tensor:
    """The factors, float32 ``[columns]``."""
    packed, columns = tensors[COLUMN_SCALES_ON_DISK], matrix_shape(shape)[1]
    return _COLUMN_SCALES(packed, columns, lambda: unpack_column_scales(packed, columns))


def _scaled(kernel: Kernel) -> Kernel:
    def decode_transposed(
        spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        check_lengths(spec, shape, tensors)
        values = kernel.decode_transposed(_without_column_scales(spec), shape, tensors, torch.float32)
        return (values * column_factors(shape, tensors)[:, None]).to(dtype)

    def multiply(
        x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None
    ) -> Tensor:
        assert kernel.multiply is not None
        check_lengths(spec, shape, tensors)
        check_input(x, shape, bias)
        scaled = x.float() * column_factors(shape, tensors)
        # In float16, small scales would give subnormal numbers.
        scaled = scaled if x.dtype == torch.float16 else scaled.to(x.dtype)
        return kernel.multiply(scaled, _without_column_scales(spec), shape, tensors, bias).to(x.dtype)

    def parameter_gradients(
        spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], grad: Tensor
    ) -> dict[str, Tensor]:
        check_lengths(spec, shape, tensors)
        grad = grad.float() * column_factors(shape, tensors)[:, None]
        return kernel.parameter_gradients(_without_column_scales(spec), shape, tensors, grad)

    return replace(
        kernel,
        purpose=f"{kernel.purpose}; column scales go to the {_scaled_side(kernel)}",
        decode_transposed=decode_transposed,
        parameter_gradients=parameter_gradients,
        multiply=multiply if kernel.multiply is not None else None,
    )


def _rotated(kernel: Kernel) -> Kernel:
    def decode_transposed(
        spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        values = kernel.decode_transposed(_without_rotation(spec), shape, tensors, torch.float32)
        return unrotate(values, _block(spec, shape)).to(dtype)

    def multiply(
        x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None
    ) -> Tensor:
        assert kernel.multiply is not None
        y = unrotate(kernel.multiply(x, _without_rotation(spec), shape, tensors, None).float(), _block(spec, shape))
        return (y if bias is None else y + bias.float()).to(x.dtype)

    def parameter_gradients(
        spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], grad: Tensor
    ) -> dict[str, Tensor]:
        return kernel.parameter_gradients(
            _without_rotation(spec), shape, tensors, rotate(grad.float(), _block(spec, shape))
        )

    return replace(
        kernel,
        purpose=f"{kernel.purpose}; the {_rotated_side(kernel)} is rotated back",
        decode_transposed=decode_transposed,
        parameter_gradients=parameter_gradients,
        multiply=multiply if kernel.multiply is not None else None,
    )


def _with_outliers(kernel: Kernel) -> Kernel:
    def decode_transposed(
        spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        check_lengths(spec, shape, tensors)
        outlier_places(shape, tensors)  # which checks that they are in the weight
        values = kernel.decode_transposed(_without_outliers(spec), shape, tensors, torch.float32)
        return add_outliers(values, tensors).to(dtype)

    def multiply(
        x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None
    ) -> Tensor:
        assert kernel.multiply is not None
        check_lengths(spec, shape, tensors)
        check_input(x, shape, bias)
        columns, outputs = outlier_places(shape, tensors)
        y = kernel.multiply(x, _without_outliers(spec), shape, tensors, bias).float()
        return y.index_add(-1, outputs, x[..., columns].float() * tensors[VALUES].float()).to(x.dtype)

    def parameter_gradients(
        spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], grad: Tensor
    ) -> dict[str, Tensor]:
        check_lengths(spec, shape, tensors)
        found = kernel.parameter_gradients(_without_outliers(spec), shape, tensors, grad)
        return found | {VALUES: grad[outlier_places(shape, tensors)].float()}

    side = "decoded weight" if kernel.multiply is None else "product"
    return replace(
        kernel,
        purpose=f"{kernel.purpose}; outliers are added to the {side}",
        decode_transposed=decode_transposed,
        parameter_gradients=parameter_gradients,
        multiply=multiply if kernel.multiply is not None else None,
    )


def outlier_places(shape: Shape, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Columns and outputs of the outliers, int64 ``[n]`` each."""
    positions, (outputs, columns) = tensors[POSITIONS], matrix_shape(shape)

    def places() -> tuple[Tensor, Tensor]:
        if problem := outlier_problem(POSITIONS, positions, outputs, columns):
            raise CheckpointError(f"a packed weight of shape {tuple(shape)} {problem}, as its outliers'")
        return places_of(positions, outputs)

    return _PLACES(positions, (outputs, columns), places)


def _block(spec: FormatSpec, shape: Shape) -> int:
    assert isinstance(spec, TrellisSpec)  # guaranteed by `is_rotated`
    if matrix_shape(shape)[0] % spec.rotation:  # kernels below see a spec without rotation, and cannot check it
        check_layer(spec, tuple(shape))
    return spec.rotation


def _scaled_side(kernel: Kernel) -> str:
    return "decoded weight" if kernel.multiply is None else "input"


def _rotated_side(kernel: Kernel) -> str:
    return "decoded weight" if kernel.multiply is None else "product"
