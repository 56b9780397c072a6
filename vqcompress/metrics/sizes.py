"""How many bytes does it take on disk?"""

from __future__ import annotations

from pathlib import Path

from vqcompress.errors import CheckpointError

READ_AS_IS = (".json", ".txt", ".model")


def pipeline_bytes(folder: str | Path) -> int:
    """Bytes of what diffusers reads from a pipeline's folder: one precision of each component's weights, and its
    configs.

    Published folders often hold more: other precisions, other frameworks' weights, pictures.
    """
    folder = Path(folder)
    parts = [path for path in folder.iterdir() if path.is_dir()]
    plain = [path for path in folder.rglob("*") if path.is_file() and path.suffix in READ_AS_IS]
    weights = [path for part in parts if any(part.glob("*.safetensors")) for path in weight_files(part)]
    return sum(path.stat().st_size for path in [*plain, *weights])


def weight_bytes(component: str | Path) -> int:
    """Bytes of a component's safetensors files, shards included, in one precision."""
    return sum(path.stat().st_size for path in weight_files(component))


def weight_files(component: str | Path) -> list[Path]:
    """A component's safetensors files; of ``x.safetensors`` and ``x.fp16.safetensors`` only the first is taken."""
    files = sorted(Path(component).glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{component} has no safetensors file: it is not a component's folder, or is incomplete")
    plain = [path for path in files if len(path.suffixes) == 1]
    return plain or files
