"""The dtype in which a product is computed: float32 if the processor would emulate the dtype of the input."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor


def in_product_dtype(x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """``product(x)`` in the dtype of ``x``, computed in `product_dtype`."""
    dtype = product_dtype(x.dtype, x.device)
    if dtype == x.dtype:
        return product(x)
    with torch.autocast(x.device.type, enabled=False):  # autocast would cast back
        return product(x.to(dtype)).to(x.dtype)


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """``dtype``, or float32 if products in that dtype would be emulated on ``device``.

    On a CPU without instructions for them, torch multiplies bfloat16 and float16 matrices five to ten times more slowly
    than float32 ones. In float32, the weight is not rounded to the 16-bit dtype; only the result is.
    """
    if dtype in (torch.float16, torch.bfloat16) and device.type == "cpu" and not _has_products(dtype):
        return torch.float32
    return dtype


@lru_cache(maxsize=4)
def _has_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN, which torch uses for products in ``dtype``, has kernels for this processor."""
    question = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    answer = getattr(torch.ops.mkldnn, question, None)
    return True if answer is None else bool(answer())
