"""The interface of kernels, and the case for which one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vqcompress.formats import FormatSpec
from vqcompress.matrix_view import Shape


class Case(NamedTuple):
    """How a packed weight is used. The choice of a kernel depends on this, the spec and the shape only.

    ``dtype`` is the dtype of the activations. ``samples`` is the number of samples in a product's input ``[samples,
    columns]``, or ``None`` if the weight is only decoded, as for convolutions. ``interpreted`` says whether Triton's
    interpreter replaces the GPU.
    """

    device: torch.device
    dtype: torch.dtype
    samples: int | None = None
    interpreted: bool = False


class Decode(Protocol):
    """``(spec, shape, tensors, dtype)`` -> ``Wᵀ [columns, outputs]``: the reference's result, rounded once to dtype."""

    def __call__(
        self, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Tensor: ...


Multiply = Callable[[Tensor, FormatSpec, Shape, Mapping[str, Tensor], Tensor | None], Tensor]
"""``(x [..., columns], spec, shape, tensors, bias [outputs])`` -> ``[..., outputs]`` in ``x``'s dtype, accumulated in
float32."""

DenseWeight = Callable[[FormatSpec, Shape, Mapping[str, Tensor], torch.dtype], Tensor]
"""``(spec, shape, tensors, dtype)`` -> the weight of ``shape``, column scales, rotation and outliers included, in the
layout that the product reads best. Valid until the thread decodes its next weight."""

Prepare = Callable[[FormatSpec, Shape, Mapping[str, Tensor], torch.dtype], Callable[[], Tensor] | None]
"""As `DenseWeight`, but returns a function that decodes the weight whenever it is called, or None. The function holds
addresses of the tensors, not the tensors: it may be called as long as they are where they were, and unchanged."""

ParameterGradients = Callable[[FormatSpec, Shape, Mapping[str, Tensor], Tensor], dict[str, Tensor]]
"""``(spec, shape, tensors, gradient of Wᵀ [columns, outputs])`` -> name -> gradient of each differentiable quantization
parameter (``scale``, ``codebooks``, ``group_scale``), float32, in its shape."""


@dataclass(frozen=True)
class Kernel:
    """One implementation of decoding and products with packed weights. All kernels have these signatures.

    ``unsupported_reason(spec, shape, case)`` is a short reason why the kernel does not support the case, empty if it
    does. ``purpose`` says what the kernel is for. With ``multiply``, it computes products of at most ``most_samples``
    samples without a dense weight; without ``multiply``, it decodes the weight for products: with ``dense_weight`` if
    it has that, else with ``decode_transposed``. ``prepare`` settles what is the same in every such call of a layer.
    With ``check_first_use`` its first results are compared with the CPU's (`vqcompress.kernels.first_use`).
    """

    name: str
    purpose: str
    unsupported_reason: Callable[[FormatSpec, Shape, Case], str]
    decode_transposed: Decode
    parameter_gradients: ParameterGradients
    multiply: Multiply | None = None
    most_samples: int | None = None
    dense_weight: DenseWeight | None = None
    prepare: Prepare | None = None
    check_first_use: bool = False


_interpreting = False


@contextmanager
def triton_interpreter() -> Iterator[None]:
    """Use Triton's interpreter instead of a GPU inside the block, so that Triton kernels accept CPU tensors. Slow.

    For tests. ``TRITON_INTERPRET=1`` must have been set in the environment when triton was imported.
    """
    global _interpreting
    before, _interpreting = _interpreting, True
    try:
        yield
    finally:
        _interpreting = before


def is_interpreted() -> bool:
    """Whether Triton's interpreter replaces the GPU."""
    return _interpreting
