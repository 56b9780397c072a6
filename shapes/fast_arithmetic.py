"""bfloat16 where the processor multiplies in it, float32 where it would be emulated (seventy times slower)."""

from __future__ import annotations

import torch


def fast_arithmetic():
    """Autocast context of the training: bfloat16 on processors with AMX or AVX512-BF16, else nothing."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplies_bfloat16())


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
