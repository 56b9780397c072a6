"""The kernels, most specialised first, and how one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from vqcompress.formats import FormatSpec
from vqcompress.kernels import cpu_numba, reference

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """One way to decode packed weights; all share these two signatures.

    ``supports(spec, shape, x)`` says whether it can serve this weight with an input like ``x``;
    ``decode_transposed(spec, shape, tensors)`` gives ``Wᵀ [columns, rows]`` in float32, equal to the reference bit for bit.
    """

    name: str
    supports: Callable[[FormatSpec, Shape, Tensor], bool]
    decode_transposed: Callable[[FormatSpec, Shape, Mapping[str, Tensor]], Tensor]


KERNELS: tuple[Kernel, ...] = (
    Kernel("cpu_numba", cpu_numba.supports, cpu_numba.decode_transposed),
    Kernel("reference", reference.supports, reference.decode_transposed),
)


def choose_kernel(spec: FormatSpec, shape: Shape, x: Tensor) -> Kernel:
    """The first kernel of the table that supports the case; the reference supports every one."""
    return next(kernel for kernel in KERNELS if kernel.supports(spec, shape, x))
