"""Whether Triton's kernels can run here, and what their launches have in common. Nothing here imports triton."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from vqcompress.errors import first_line
from vqcompress.kernels.tensor_cache import refuse_capture

MINIMUM_CAPABILITY = (7, 5)
PRODUCT_CAPABILITY = (8, 0)  # products in bfloat16
LARGEST_OFFSET = 1 << 31  # the kernels count weights and bytes in 32 bits
STATE_BITS_IN_SHARED = 12  # tables of up to 8 kB are looked up in shared memory, larger ones through the L1 cache

LANES = 1024  # lanes of 8 weights in a decoding program: what a table in shared memory is brought there for
DECODE_WARPS = 8

# Products and sums may be fused: where a result must equal the reference bit for bit there is nothing to fuse.
OPTIONS = {"enable_fp_fusion": True}


def device_unsupported_reason(device: torch.device, interpreted: bool) -> str:
    """Why no Triton kernel can run on ``device``, or by Triton's interpreter there, or an empty string."""
    if not _has_triton():
        return "triton is not installed (pip install 'vqcompress[gpu]')"
    if interpreted:
        return "" if device.type in ("cpu", "cuda") else f"no Triton on {device.type}"
    if device.type != "cuda":
        return f"no GPU: the input is on {device.type}"
    if torch.version.hip is None and (capability := _capability(device)) < MINIMUM_CAPABILITY:
        return f"a GPU of compute capability {capability[0]}.{capability[1]}, the kernels need 7.5"
    return probe_problem(device)


def product_device_unsupported_reason(device: torch.device, interpreted: bool) -> str:
    """Why ``device`` has no instructions for Triton's products, or an empty string."""
    if interpreted or device.type != "cuda" or torch.version.hip is not None:
        return ""
    capability = _capability(device)
    if capability >= PRODUCT_CAPABILITY:
        return ""
    return f"a GPU of compute capability {capability[0]}.{capability[1]}, products need 8.0"


@lru_cache(maxsize=16)
def probe_problem(device: torch.device) -> str:
    """Why a small kernel cannot be compiled and launched on ``device``, or an empty string.

    Triton needs a C compiler where it runs, which it misses at the first launch only. Then the next kernel of the table
    serves.
    """
    refuse_capture(device)
    try:
        from vqcompress.kernels.triton.probe import write_one

        out = torch.zeros(1, dtype=torch.int32, device=device)
        with torch.cuda.device_of(out):
            write_one[(1,)](out)
        works = int(out) == 1
    except Exception as error:  # noqa: BLE001 - a missing compiler or library raises anything
        return f"Triton launches nothing here: {type(error).__name__}: {first_line(error)}"
    return "" if works else "Triton's launches do nothing here"


def size_unsupported_reason(shape: tuple[int, ...], most_bits: int) -> str:
    """Why a weight of this shape, of at most ``most_bits`` each, is beyond the kernels' arithmetic, or an empty string.

    They count the half bits of a column too.
    """
    if math.prod(shape) * max(1, most_bits / 8) >= LARGEST_OFFSET:
        return "2**31 weights or bytes or more"
    return "" if 2 * shape[0] * most_bits < LARGEST_OFFSET else "columns of 2**30 bits or more"


def stored_bytes(tensor: Tensor) -> Tensor:
    """Packed codes as the kernels read them, uint8."""
    return tensor.detach().view(torch.uint8)


def decode_programs(columns: int, groups: int, rates: int = 1, lanes: int = LANES) -> int:
    """Enough programs whatever the rates: each rate but the last may leave one program partly filled."""
    return -(-columns * groups // lanes) + rates - 1


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
