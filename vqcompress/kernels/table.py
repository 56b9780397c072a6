"""The table of kernels, most specialised first, and the cached choice of a kernel."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vqcompress.formats import FormatSpec
from vqcompress.kernels import reference
from vqcompress.kernels.cpu import dense as cpu_dense
from vqcompress.kernels.cpu import operations as cpu
from vqcompress.kernels.cuda import operations as cuda
from vqcompress.kernels.cuda import products
from vqcompress.kernels.first_use import checked
from vqcompress.kernels.kernel import Case, Kernel, is_interpreted
from vqcompress.kernels.transforms import code_spec, transformed
from vqcompress.kernels.triton import operations as triton
from vqcompress.matrix_view import Shape

KERNELS: tuple[Kernel, ...] = (
    Kernel(
        "cuda_multiply",
        "few samples: decodes in CUDA C++ into the operands of a product, and writes no dense weight",
        products.unsupported_reason,
        cuda.decode_transposed,
        reference.parameter_gradients,
        products.multiply,
        products.MOST_SAMPLES,
        check_first_use=True,
    ),
    Kernel(
        "triton_multiply",
        "few samples: reads the codes alone and writes no dense weight",
        triton.product_unsupported_reason,
        triton.decode_transposed,
        reference.parameter_gradients,
        triton.multiply,
        triton.MOST_SAMPLES,
        check_first_use=True,
    ),
    Kernel(
        "cuda_decode",
        "many samples: decodes the whole weight in CUDA C++, then multiplies with the library's dense kernel",
        cuda.unsupported_reason,
        cuda.decode_transposed,
        reference.parameter_gradients,
        dense_weight=cuda.dense_weight,
        prepare=cuda.prepare,
    ),
    Kernel(
        "triton_decode",
        "many samples: decodes once into scratch memory, then multiplies with the library's dense kernel",
        triton.unsupported_reason,
        triton.decode_transposed,
        reference.parameter_gradients,
        check_first_use=True,
    ),
    Kernel(
        "cpu_row",
        "one or two samples: looks up and multiplies in one pass, reading the codes alone",
        cpu.product_unsupported_reason,
        cpu.decode_transposed,
        cpu.parameter_gradients,
        cpu.multiply,
        cpu.MOST_SAMPLES,
    ),
    Kernel(
        "cpu_numba",
        "decodes with compiled loops, then multiplies with torch",
        cpu.unsupported_reason,
        cpu.decode_transposed,
        cpu.parameter_gradients,
        dense_weight=cpu_dense.dense_weight,
        prepare=cpu_dense.prepare,
    ),
    Kernel(
        "reference",
        "anything, anywhere, slowly: plain torch operations",
        reference.unsupported_reason,
        reference.decode_transposed,
        reference.parameter_gradients,
    ),
)

# The kernels' values of `most_samples`. All sample counts between two of these limits give the same choice.
SAMPLE_LIMITS = tuple(sorted({kernel.most_samples for kernel in KERNELS if kernel.most_samples is not None}))
_BUCKETS = (*SAMPLE_LIMITS, SAMPLE_LIMITS[-1] + 1)


@lru_cache(maxsize=1 << 14)
def choose_kernel(spec: FormatSpec, shape: Shape, case: Case) -> Kernel:
    """The first kernel of the table that supports the case, wrapped in the spec's transforms.

    The reference supports every case. The choice is cached: it is made again only if the layer's device, the dtype of
    its activations, its spec or the bucket of its sample count changes, see `product_case`.
    """
    kernel = next(kernel for kernel in KERNELS if not refusal(kernel, spec, shape, case))
    return transformed(checked(kernel, case) if kernel.check_first_use and not case.interpreted else kernel, spec)


def refusal(kernel: Kernel, spec: FormatSpec, shape: Shape, case: Case) -> str:
    """Why ``kernel`` cannot serve the weight: one that decodes whole weights must know its transforms too."""
    return kernel.unsupported_reason(spec if kernel.dense_weight is not None else code_spec(spec), shape, case)


def product_case(x: Tensor) -> Case:
    """The case of a product with ``x [..., columns]``. All counts within a bucket of `SAMPLE_LIMITS` are one case."""
    samples = x.numel() // max(1, x.shape[-1])
    return Case(x.device, x.dtype, _BUCKETS[bisect_left(SAMPLE_LIMITS, samples)], is_interpreted())


def decode_case(device: torch.device, dtype: torch.dtype) -> Case:
    """The case of decoding a weight to ``dtype`` on ``device``. Convolutions use it too."""
    return Case(device, dtype, None, is_interpreted())


@dataclass(frozen=True)
class KernelChoice:
    """The kernel's ``name``, its ``purpose``, and name -> reason of each kernel before it that declined."""

    name: str
    purpose: str
    refused: dict[str, str]


def kernel_choice(
    spec: FormatSpec,
    shape: Shape,
    samples: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> KernelChoice:
    """The choice for a layer called with ``samples`` samples (ignored for convolutions). Runs no kernel.

    ``shape`` is the shape of the dense weight, ``dtype`` the dtype of the activations.
    """
    case = Case(torch.device(device), dtype, samples if len(shape) == 2 else None, is_interpreted())
    refused = dict[str, str]()
    for kernel in KERNELS:
        reason = refusal(kernel, spec, shape, case)
        if not reason:
            return KernelChoice(kernel.name, transformed(kernel, spec).purpose, refused)
        refused[kernel.name] = reason
    raise AssertionError("the reference serves every case")
