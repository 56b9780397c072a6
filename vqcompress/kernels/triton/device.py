"""Whether Triton's kernels can run here, and what their launches have in common. Triton itself is imported at the first launch."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

MINIMUM_CAPABILITY = (8, 0)  # bfloat16, and shared memory for the tables
INTERPRETED = False  # tests set this, in a process where TRITON_INTERPRET was set before triton's import
LARGEST_OFFSET = 1 << 31  # the kernels count weights and bytes in 32 bits
STATE_BITS_IN_SHARED = 12  # tables of up to 8 kB are looked up in shared memory, larger ones through the L1 cache

# Products and sums may be fused: where a result must equal the reference bit for bit there is nothing to fuse.
OPTIONS = {"enable_fp_fusion": True}


def device_unsupported_reason(x: Tensor) -> str:
    """Why no Triton kernel can run where ``x`` is, or an empty string."""
    if not _has_triton():
        return "triton is not installed (pip install 'vqcompress[gpu]')"
    if is_interpreted():
        return "" if x.device.type in ("cpu", "cuda") else f"no Triton on {x.device.type}"
    if x.device.type != "cuda":
        return f"no GPU: the input is on {x.device.type}"
    if torch.version.hip is None and (capability := _capability(x.device)) < MINIMUM_CAPABILITY:
        return f"a GPU of compute capability {capability[0]}.{capability[1]}, the kernels need 8.0"
    return ""


def size_unsupported_reason(shape: tuple[int, ...]) -> str:
    """Why a weight of this shape is beyond the kernels' arithmetic, or an empty string."""
    return "" if math.prod(shape) < LARGEST_OFFSET else "2**31 weights or more"


def is_interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return INTERPRETED


def stored_bytes(tensor: Tensor) -> Tensor:
    """Packed codes as the kernels read them, uint8."""
    return tensor.detach().view(torch.uint8)


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None


@lru_cache(maxsize=16)
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@lru_cache(maxsize=16)
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a device (4 under the interpreter: few programs, but more than one)."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
