"""In which dtype a product is taken: not in one that the processor has to emulate."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor


def in_product_dtype(x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """``product(x)`` in the dtype of ``x``, taken in `product_dtype`."""
    dtype = product_dtype(x)
    if dtype == x.dtype:
        return product(x)
    with torch.autocast(x.device.type, enabled=False):  # it would cast back
        return product(x.to(dtype)).to(x.dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of ``x``, or float32 where products in that one would be emulated.

    Without instructions for them torch multiplies bfloat16 and float16 matrices on a CPU five to ten times more slowly
    than float32 ones. The weight then is not rounded to the short dtype first, only the result is.
    """
    if x.dtype in (torch.float16, torch.bfloat16) and x.device.type == "cpu" and not _has_products(x.dtype):
        return torch.float32
    return x.dtype


@lru_cache(maxsize=4)
def _has_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN, which torch leaves such products to, has kernels for this processor."""
    question = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    answer = getattr(torch.ops.mkldnn, question, None)
    return True if answer is None else bool(answer())
