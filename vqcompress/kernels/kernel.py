"""What a kernel is, and what it is asked whether it can serve."""

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
    """Where and on what a packed weight is used: all that the choice of a kernel depends on beside spec and shape.

    ``dtype`` is that of the activations. ``samples`` counts those of a product's input ``[samples, columns]``; it is
    ``None`` where the weight is only decoded, as for convolutions. ``interpreted``: Triton's interpreter stands in for
    a GPU.
    """

    device: torch.device
    dtype: torch.dtype
    samples: int | None = None
    interpreted: bool = False


class Decode(Protocol):
    """``(spec, shape, tensors, dtype)`` -> ``Wᵀ [columns, outputs]`` in ``dtype``: the reference's, rounded once."""

    def __call__(
        self, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Tensor: ...


Multiply = Callable[[Tensor, FormatSpec, Shape, Mapping[str, Tensor], Tensor | None], Tensor]
"""``(x [..., columns], spec, shape, tensors, bias [outputs])`` -> ``[..., outputs]`` in ``x``'s dtype, summed in
float32."""

ParameterGradients = Callable[[FormatSpec, Shape, Mapping[str, Tensor], Tensor], dict[str, Tensor]]
"""``(spec, shape, tensors, gradient of Wᵀ [columns, outputs])`` -> name -> gradient of each quantization parameter that
is differentiable (``scale``, ``codebooks``, ``group_scale``), float32, in its shape."""


@dataclass(frozen=True)
class Kernel:
    """One way to serve packed weights; all share these signatures.

    ``unsupported_reason(spec, shape, case)`` says in a few words why it cannot serve the case, or nothing when it can;
    ``purpose`` says what it is for. With ``multiply`` it takes products of at most ``most_samples`` samples without a
    dense weight; without, it decodes for them.
    """

    name: str
    purpose: str
    unsupported_reason: Callable[[FormatSpec, Shape, Case], str]
    decode_transposed: Decode
    parameter_gradients: ParameterGradients
    multiply: Multiply | None = None
    most_samples: int | None = None


_interpreting = False


@contextmanager
def triton_interpreter() -> Iterator[None]:
    """Triton's interpreter stands in for a GPU meanwhile, so that its kernels serve CPU tensors, slowly.

    For tests: the environment must have had ``TRITON_INTERPRET=1`` when triton was imported.
    """
    global _interpreting
    before, _interpreting = _interpreting, True
    try:
        yield
    finally:
        _interpreting = before


def is_interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return _interpreting
