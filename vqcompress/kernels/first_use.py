"""The first thing that each kernel of a GPU computes is computed on the CPU too: one that differs is not used again.

The kernels are compiled on the user's machine, for a GPU that no test has run on. Decoded weights must be the CPU's bit
for bit, products within their dtype's rounding. A kernel that fails is replaced by the reference, with a warning.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vqcompress.formats import FormatSpec
from vqcompress.kernels import reference
from vqcompress.kernels.cpu import dense as cpu_dense
from vqcompress.kernels.cpu import operations as cpu
from vqcompress.kernels.kernel import Case, Kernel
from vqcompress.kernels.tensor_cache import refuse_capture
from vqcompress.matrix_view import Shape, from_transposed

DIFFERS_TEXT = "differs from the same on the CPU"
DIFFERS = f".*{DIFFERS_TEXT}"
"""Matches the warning."""
HOST = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Of a product's norm: several times the rounding of inputs and outputs, far less than what wrong weights make."""


class Verdicts:
    """Which kernels were found to compute what the CPU does. Threads may share it."""

    def __init__(self) -> None:
        self._known: dict[Hashable, bool] = {}

    def trusted(self, kernels: Sequence[Hashable], check: Callable[[], bool], what: str) -> bool:
        """Whether all of ``kernels`` are right. ``check()`` tries those that nothing is known of, together; ``what``
        is said of them if they fail."""
        unknown = [kernel for kernel in kernels if kernel not in self._known]
        if unknown:
            right = check()
            self._known |= dict.fromkeys(unknown, right)
            if not right:
                warnings.warn(
                    f"{what} {DIFFERS_TEXT}; vqcompress uses plain torch operations instead, which "
                    "are right and slow. Please report it with the output of `vqcompress env`",
                    stacklevel=2,
                )
        return all(self._known[kernel] for kernel in kernels)


def is_host_weight(
    weight: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> bool:
    """Whether ``weight``, decoded to ``dtype`` on a device, is what the CPU decodes, bit for bit."""
    found, expected = weight.to(HOST), host_weight(spec, shape, tensors, dtype)
    return bool(((found == expected) | (found.isnan() & expected.isnan())).all())


def host_weight(spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The weight of ``shape``, decoded on the CPU; valid until this thread decodes the next one there."""
    here = {name: tensor.detach().to(HOST) for name, tensor in tensors.items()}
    if cpu.unsupported_reason(spec, shape, Case(HOST, dtype)):
        return from_transposed(reference.decode_transposed(spec, shape, here, dtype), shape)
    return cpu_dense.dense_weight(spec, shape, here, dtype)


def checked(kernel: Kernel, case: Case) -> Kernel:
    """``kernel``, which compares the first weight that it decodes, and the first product, with the CPU's.

    For the weights of one spec and shape in one case, which have one machine code.
    """
    verdicts = Verdicts()
    where = f"by {kernel.name} on {case.device} in {case.dtype}"

    def decode(
        spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        out = kernel.decode_transposed(spec, shape, tensors, dtype)

        def check() -> bool:
            refuse_capture(case.device)
            return is_host_weight(from_transposed(out, shape), spec, shape, tensors, dtype)

        if verdicts.trusted([("decode", dtype)], check, f"a weight of {shape} decoded {where}"):
            return out
        return reference.decode_transposed(spec, shape, tensors, dtype)

    def multiply(
        x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None
    ) -> Tensor:
        assert kernel.multiply is not None
        y = kernel.multiply(x, spec, shape, tensors, bias)

        def check() -> bool:
            refuse_capture(case.device)
            weight = host_weight(spec, shape, tensors, torch.float32)
            expected = F.linear(x.detach().to(HOST).float(), weight, None if bias is None else bias.to(HOST).float())
            return _close(y, expected)

        if not y.numel() or verdicts.trusted(["multiply"], check, f"a product with {shape} {where}"):
            return y
        weight = reference.decode_transposed(spec, shape, tensors, torch.float32)
        product = x.float() @ weight
        return (product if bias is None else product + bias.float()).to(x.dtype)

    return replace(kernel, decode_transposed=decode, multiply=None if kernel.multiply is None else multiply)


def _close(y: Tensor, expected: Tensor) -> bool:
    """Whether a product is within its dtype's rounding; where the exact one is no number of that dtype, so it is."""
    found, exact = y.detach().to(HOST).double(), expected.to(y.dtype).double()
    finite = exact.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return not bool(finite.all())  # sums that overflow on the way, in one order or the other
    error = math.sqrt(float((found - exact)[finite].square().sum()))
    return error <= TOLERANCE[y.dtype] * math.sqrt(float(exact[finite].square().sum()))
