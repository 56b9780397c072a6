"""The dtype that a checkpoint's denoiser is stored in: that of most of its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path

import torch

from vqcompress.architectures.narrow_weights import DENOISERS
from vqcompress.component_files import ComponentFiles, components
from vqcompress.errors import VQCompressError

FLOATS = {
    **{"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.bfloat16, "F8_E5M2": torch.bfloat16},  # whose range holds theirs
}
SHARED = "vq_shared."  # codebooks of a packed component


def stored_dtype(folder: Path) -> torch.dtype:
    """That of the denoiser in the pipeline ``folder``; float32 where it cannot be told.

    Of a packed denoiser, codes and their scales have dtypes of their own and do not count.
    """
    try:
        found = {part.name: part for part in components(folder)}
        denoiser = next(found[name] for name in DENOISERS if name in found)
        dense = ((dtype, shape) for name, dtype, shape in _entries(denoiser) if _is_dense(denoiser, name))
        return dtype_of_entries(dense)
    except (VQCompressError, StopIteration):
        return torch.float32


def dtype_of_entries(entries: Iterable[tuple[str, tuple[int, ...]]]) -> torch.dtype:
    """The dtype in which most numbers of ``entries`` (safetensors' dtype, shape) are computed with."""
    numbers: Counter[torch.dtype] = Counter()
    for dtype, shape in entries:
        if dtype in FLOATS:
            numbers[FLOATS[dtype]] += prod(shape)
    return numbers.most_common(1)[0][0] if numbers else torch.float32


def _entries(part: ComponentFiles) -> Iterable[tuple[str, str, tuple[int, ...]]]:
    return ((name, tensor.dtype, tensor.shape) for name, tensor in part.tensors().items())


def _is_dense(part: ComponentFiles, name: str) -> bool:
    """Whether a tensor of ``part`` is none of a packed layer, or its bias."""
    layer, _, key = name.rpartition(".")
    packed = (part.description or {}).get("layers", {})
    return not name.startswith(SHARED) and (layer not in packed or key == "bias")
