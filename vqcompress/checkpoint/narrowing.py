"""Dense tensors back to 16 bits on disk, where the original had 16 bits and nothing is lost.

Models are opened in float32 to compute with, also when their files are float16. Saved as they stand, the dense parts
would take twice their original size.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def narrow_folder(folder: Path) -> None:
    """Rewrite every safetensors file below ``folder`` whose float32 tensors are all exact in float16."""
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        wide = [name for name, tensor in tensors.items() if tensor.dtype == torch.float32]
        if wide and all(_is_exact(tensors[name]) for name in wide):
            save_file({name: t.half() if name in wide else t for name, t in tensors.items()}, path, metadata=metadata)


def _is_exact(tensor: Tensor) -> bool:
    return torch.equal(tensor.half().float(), tensor)
