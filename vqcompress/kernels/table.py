"""The kernels, most specialised first, and how one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vqcompress.formats import FormatSpec
from vqcompress.kernels import column_scales as gained
from vqcompress.kernels import reference
from vqcompress.kernels import rotation as rotated
from vqcompress.kernels.cpu import decode as cpu_numba
from vqcompress.kernels.cpu import multiply as cpu_row
from vqcompress.kernels.triton import decode as triton_decode
from vqcompress.kernels.triton import multiply as triton_multiply
from vqcompress.matrix_view import Shape


class Decode(Protocol):
    """``(spec, shape, tensors, dtype)`` -> ``Wᵀ [columns, rows]``: the reference's float32, bit for bit, rounded to ``dtype``."""

    def __call__(
        self, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Tensor: ...


Multiply = Callable[[Tensor, FormatSpec, Shape, Mapping[str, Tensor], Tensor | None], Tensor]
"""``(x [..., columns], spec, shape, tensors, bias [rows])`` -> ``[..., rows]`` in ``x``'s dtype, sums in float32."""


@dataclass(frozen=True)
class Kernel:
    """One way to serve packed weights; all share these signatures.

    ``unsupported_reason(spec, shape, x)`` says why it cannot serve this weight with an input like ``x``, in a few words, or nothing when it
    can; ``purpose`` says what it is for. With ``multiply`` it takes products without a dense weight, else it decodes for them.
    """

    name: str
    purpose: str
    unsupported_reason: Callable[[FormatSpec, Shape, Tensor], str]
    decode_transposed: Decode
    multiply: Multiply | None = None

    def supports(self, spec: FormatSpec, shape: Shape, x: Tensor) -> bool:
        """Whether it can serve this weight with an input like ``x``."""
        return not self.unsupported_reason(spec, shape, x)


def choose_kernel(spec: FormatSpec, shape: Shape, x: Tensor) -> Kernel:
    """The first kernel of the table that supports the case; the reference supports every one.

    ``x`` is the input of the product; for decoding alone, the codes.
    """
    return next(kernel for kernel in KERNELS if kernel.supports(spec, shape, x))


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        "gained",
        gained.PURPOSE,
        gained.unsupported_reason,
        gained.gained_decode(choose_kernel),
        gained.gained_multiply(choose_kernel),
    ),
    Kernel(
        "rotated",
        rotated.PURPOSE,
        rotated.unsupported_reason,
        rotated.rotated_decode(choose_kernel),
        rotated.rotated_multiply(choose_kernel),
    ),
    Kernel(
        "triton_multiply",
        triton_multiply.PURPOSE,
        triton_multiply.unsupported_reason,
        triton_decode.decode_transposed,
        triton_multiply.multiply,
    ),
    Kernel("triton_decode", triton_decode.PURPOSE, triton_decode.unsupported_reason, triton_decode.decode_transposed),
    Kernel("cpu_row", cpu_row.PURPOSE, cpu_row.unsupported_reason, cpu_numba.decode_transposed, cpu_row.multiply),
    Kernel("cpu_numba", cpu_numba.PURPOSE, cpu_numba.unsupported_reason, cpu_numba.decode_transposed),
    Kernel("reference", reference.PURPOSE, reference.unsupported_reason, reference.decode_transposed),
)
