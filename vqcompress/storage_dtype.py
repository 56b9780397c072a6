"""Dense tensors back to 16 bits on disk, where the original had 16 bits and nothing is lost.

Models are opened in float32 to compute with, also when their files are float16 or bfloat16. Saved as they stand, the
dense parts would take twice their original size.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def narrow_folder(folder: Path) -> None:
    """Rewrite every safetensors file below ``folder`` whose float32 tensors are all exact in a 16-bit type."""
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        wide = [name for name, tensor in tensors.items() if tensor.dtype == torch.float32]
        dtype = narrowest_dtype(tensors[name] for name in wide)
        if wide and dtype != torch.float32:
            save_file(
                {name: t.to(dtype) if name in wide else t for name, t in tensors.items()}, path, metadata=metadata
            )


def narrowest_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """float16 or bfloat16 where it holds all of ``tensors`` exactly, or else float32."""
    possible = [torch.float16, torch.bfloat16]
    for tensor in tensors:
        possible = [dtype for dtype in possible if torch.equal(tensor.to(dtype).float(), tensor.float())]
    return possible[0] if possible else torch.float32
