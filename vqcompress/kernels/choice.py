"""Which kernel a packed layer would be served by, and why not one before it in the table."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vqcompress.formats import FormatSpec
from vqcompress.kernels.table import KERNELS
from vqcompress.matrix_view import Shape


@dataclass(frozen=True)
class KernelChoice:
    """The kernel's ``name``, its ``purpose``, and name -> reason of each kernel before it that refused."""

    name: str
    purpose: str
    refused: dict[str, str]


def kernel_choice(
    spec: FormatSpec,
    shape: Shape,
    rows: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> KernelChoice:
    """The choice for ``rows`` rows of inputs (for a convolution: for any image), without running anything.

    ``shape`` is the dense weight's, ``dtype`` that of the activations.
    """
    probe = torch.empty(1, dtype=dtype, device=device)
    x = probe.expand(rows, shape[1]) if len(shape) == 2 else probe.expand(1, shape[1], rows, 1)
    refused: dict[str, str] = {}
    for kernel in KERNELS:
        reason = kernel.unsupported_reason(spec, shape, x)
        if not reason:
            return KernelChoice(kernel.name, kernel.purpose, refused)
        refused[kernel.name] = reason
    raise AssertionError("the reference serves every case")
