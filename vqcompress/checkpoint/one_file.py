"""A compressed folder as one file, once its files are known to be those that were written."""

from __future__ import annotations

from pathlib import Path

from vqcompress.bundling import write_bundle
from vqcompress.checkpoint.verification import check_hashes
from vqcompress.errors import RecipeError
from vqcompress.folder_files import StrPath


def bundle(folder: StrPath, path: StrPath, *, verified: bool = True) -> Path:
    """Write the compressed pipeline in ``folder`` as one ``.safetensors`` file ``path``, byte for byte; return it.

    After `import vqcompress`, diffusers opens it with ``from_single_file``. The folder's files are compared with its
    manifest first (SHA-256), unless ``verified`` is off. Raises `CheckpointError` for what is no compressed folder and
    for a ``path`` that exists, `RecipeError` for a name that does not end in ``.safetensors``.
    """
    folder, path = Path(folder), Path(path)
    if path.suffix != ".safetensors":
        name = path.with_suffix(".safetensors") if path.name else "pipeline.safetensors"
        raise RecipeError(f"a bundle is one .safetensors file; name it {name}, not {path}")
    if verified:
        check_hashes(folder)
    return write_bundle(folder, path)
