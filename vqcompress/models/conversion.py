"""Convert an official checkpoint to an ordinary diffusers folder. Only this module reads ``.pt`` files."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vqcompress.errors import ArchitectureError, first_line
from vqcompress.models import FAMILIES, from_official
from vqcompress.models.presets import Preset, preset
from vqcompress.models.shards import read_shards

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from vqcompress.models.pipeline_parts import PipelineParts

# Training code saves the weights under one of these keys. The papers sample from the averaged weights (``ema``).
_WRAPPERS = ("ema", "model", "state_dict")
_PICKLES = (".pt", ".pth", ".ckpt", ".bin")


def read_official(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a ``.safetensors`` or PyTorch file, without the dict that training code wraps around it.

    PyTorch files are read with ``weights_only=True``: tensors and plain containers, no code. Raises ArchitectureError
    for a file that is missing, contains anything else, or has another extension.
    """
    path = Path(path)
    if not path.is_file():
        raise ArchitectureError(f"{path}: no such file; give an official checkpoint (.safetensors, .pt or .pth)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in _PICKLES:
            return _unwrapped(torch.load(path, map_location="cpu", weights_only=True), path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ArchitectureError(
            f"{path} cannot be read as plain tensors: {first_line(error)[:60]}… Only files without code are read."
        ) from error
    raise ArchitectureError(f"{path}: official checkpoints end in .safetensors, {', '.join(_PICKLES)}")


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    held = next((content[key] for key in _WRAPPERS if key in content), content) if isinstance(content, dict) else {}
    tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)} if held else {}
    if not tensors or len(tensors) < len(held):
        raise ArchitectureError(f"{path} holds no state dict, neither bare nor under {', '.join(map(repr, _WRAPPERS))}")
    return tensors


def configuration(model: str | Preset, arguments: Mapping[str, object] | None = None) -> Preset:
    """Return the family and the constructor arguments of ``model``.

    ``model`` is a preset, the name of a preset, or a family (a key of `models.FAMILIES`) with its official defaults.
    ``arguments`` of the official constructor replace those of the preset. Raises ArchitectureError for an unknown name.
    """
    if isinstance(model, Preset):
        chosen = model
    else:
        chosen = Preset(model, {}) if model in FAMILIES else preset(model)
    if chosen.family not in FAMILIES:
        raise ArchitectureError(
            f"{model} is published as a diffusers folder, or as a size without weights: there is nothing to convert"
        )
    return Preset(chosen.family, {**chosen.arguments, **(arguments or {})})


def _weights(chosen: Preset, checkpoint: Path) -> dict[str, Tensor]:
    if not checkpoint.is_dir():
        return read_official(checkpoint)
    whole = {name: tensor.shape for name, tensor in chosen.build("meta").state_dict().items()}
    return read_shards(checkpoint, whole, read_official)


def _common_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """Return the checkpoint's floating-point dtype, or float32 if it mixes dtypes."""
    found = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32


def convert_official(
    model: str | Preset,
    checkpoint: str | Path,
    folder: str | Path,
    *,
    arguments: Mapping[str, object] | None = None,
    parts: PipelineParts | None = None,
) -> Path:
    """Write ``model`` (a preset, or the name of a preset or a family) with official weights as a diffusers folder.

    ``checkpoint``: a file, the folder of a sharded checkpoint (see `shards`), or the folder of a LinFusion adapter.
    ``arguments``: see `configuration`. ``parts``: the parts of the pipeline that are not in the checkpoint. Weights
    keep the checkpoint's dtype. Returns the folder, which `vqcompress quantize` and
    ``DiffusionPipeline.from_pretrained`` can open. Raises ArchitectureError for an unknown name, for missing parts,
    and for weights that do not fit.
    """
    from vqcompress.models.pipeline_parts import PipelineParts, pipeline_around

    chosen, parts = configuration(model, arguments), parts or PipelineParts()
    if chosen.family == "linfusion":
        pipeline = _mounted(checkpoint, parts.base)
    else:
        weights = _weights(chosen, Path(checkpoint))
        network = from_official(chosen.family, chosen.arguments, weights).to(_common_dtype(weights))
        pipeline = pipeline_around(network, parts)
    pipeline.save_pretrained(folder)
    return Path(folder)


def _mounted(checkpoint: str | Path, base: DiffusionPipeline | None) -> DiffusionPipeline:
    from vqcompress.models.linfusion import mount

    if base is None:
        raise ArchitectureError(
            f"{checkpoint} is a LinFusion adapter: give the pipeline that it is mounted on (--base)"
        )
    mount(base, checkpoint)
    return base
