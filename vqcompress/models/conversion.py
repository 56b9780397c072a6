"""The one explicit step from an official checkpoint to an ordinary diffusers folder; nothing else here reads ``.pt``."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.models import from_official
from vqcompress.models.presets import Preset, preset
from vqcompress.models.shards import read_shards

# Trainers save their weights under one of these; the averaged ones are those that the papers sample.
_WRAPPERS = ("ema", "model", "state_dict")
_PICKLES = (".pt", ".pth", ".ckpt", ".bin")


def read_official(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` or PyTorch file, taken out of the dict that a trainer wrapped it in.

    PyTorch files are read with ``weights_only=True``: tensors and plain containers, no code. Raises ArchitectureError
    for a file that is missing, holds anything else, or is of another kind.
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
            f"{path} cannot be read as plain tensors: {str(error).splitlines()[0]} Only files without code are read."
        ) from error
    raise ArchitectureError(f"{path}: official checkpoints end in .safetensors, {', '.join(_PICKLES)}")


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    held = next((content[key] for key in _WRAPPERS if key in content), content) if isinstance(content, dict) else {}
    tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)} if held else {}
    if not tensors or len(tensors) < len(held):
        raise ArchitectureError(f"{path} holds no state dict, neither bare nor under {', '.join(map(repr, _WRAPPERS))}")
    return tensors


def _weights(chosen: Preset, checkpoint: Path) -> dict[str, Tensor]:
    if not checkpoint.is_dir():
        return read_official(checkpoint)
    whole = {name: tensor.shape for name, tensor in chosen.build("meta").state_dict().items()}
    return read_shards(checkpoint, whole, read_official)


def convert_official(
    name: str,
    checkpoint: str | Path,
    folder: str | Path,
    *,
    vae: nn.Module | None = None,
    id2label: Mapping[int, str] | None = None,
) -> Path:
    """Write the class-conditional model ``name`` (a preset) with an official checkpoint's weights as a diffusers folder.

    ``checkpoint``: a file, or the folder of a sharded checkpoint (see `shards`). ``vae``: a diffusers AutoencoderKL for
    its latents; without one, only latents can be sampled. Returns the folder, which `vqcompress quantize` and
    ``DiffusionPipeline.from_pretrained`` open. Raises ArchitectureError for an unknown name, for one that needs text
    encoders, and for weights that do not fit.
    """
    from vqcompress.models.class_pipeline import ClassConditionalPipeline
    from vqcompress.models.network import Network

    chosen = preset(name)
    network = from_official(chosen.family, chosen.arguments, _weights(chosen, Path(checkpoint)))
    if not isinstance(network, Network) or "num_classes" not in network.config:
        raise ArchitectureError(
            f"{name} is conditioned on text: a checkpoint of its denoiser alone makes no pipeline. Build one with its text "
            "encoder and VAE around vqcompress.models.from_official"
        )
    pipeline = ClassConditionalPipeline.with_defaults(network, vae, dict(id2label) if id2label else None)
    pipeline.save_pretrained(folder)
    return Path(folder)
