"""The weights that a run starts from: every value finite, and a hash of all of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vqcompress.architectures.architecture import Pipeline
from vqcompress.architectures.published import published
from vqcompress.bundling import read_bundle
from vqcompress.errors import ArchitectureError
from vqcompress.working_memory import usable_cores

CHUNK = 1 << 22
"""Values that are read at once."""

_WITHOUT_EFFECT = ("transformers_version", "dtype", "torch_dtype", "architectures")
"""Keys of a config that say how a model was saved."""


def source_files(model: str | Pipeline, pipeline: Pipeline) -> list[tuple[str, int, int]]:
    """(path, bytes, modification time in ns) of every weight file of ``pipeline``, which was opened by the name
    ``model``; empty where these files are not all that its weights come from."""
    if not isinstance(model, str) or ((row := published(model)) and row[1].official):
        return []
    folder, file = str(getattr(pipeline, "name_or_path", "")), Path(os.path.expanduser(model))
    paths = sorted(Path(folder).rglob("*.safetensors")) if folder and os.path.isdir(folder) else []
    if file.is_file():  # the other parts of a denoiser's file come from a folder, a bundle's folder is temporary
        paths = [file] if read_bundle(file) is not None else [file, *paths]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def component_hashes(pipeline: Pipeline, files: list[tuple[str, int, int]]) -> dict[str, str]:
    """Network of ``pipeline`` -> SHA-256 of its configuration and of the name, shape and values of every tensor that
    is saved with it: the same for weights opened in 16 bits and in float32.

    Raises `ArchitectureError`, which names the file (one of ``files``) and the tensor, for a value that is not finite.
    """
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {name: _network_hash(name, network, [Path(file[0]) for file in files]) for name, network in networks.items()}


def vocabulary_hashes(pipeline: Pipeline) -> dict[str, str]:
    """Tokenizer of ``pipeline`` -> SHA-256 of its vocabulary."""
    parts = {name: part for name, part in pipeline.components.items() if hasattr(part, "get_vocab")}
    return {name: json_hash(sorted(part.get_vocab().items())) for name, part in parts.items()}


def scheduler_config(pipeline: Pipeline) -> dict[str, Any]:
    """Class and configuration of the pipeline's scheduler, as JSON values; empty for none."""
    scheduler = getattr(pipeline, "scheduler", None)
    return {} if scheduler is None else {"class": type(scheduler).__name__, **_plain_config(scheduler)}


def json_hash(value: Any) -> str:
    """SHA-256 of ``value`` as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _network_hash(component: str, network: nn.Module, paths: list[Path]) -> str:
    tensors = {name: tensor for name, tensor in network.state_dict().items() if not tensor.is_meta}
    digest = hashlib.sha256(json_hash([type(network).__name__, _plain_config(network)]).encode())

    def hashed(item: tuple[str, Tensor]) -> bytes:
        values = hashlib.sha256(f"{item[0]} {tuple(item[1].shape)}".encode())
        for chunk in _chunks(item[1]):
            if chunk.is_floating_point() and not bool(torch.isfinite(chunk).all()):
                raise ArchitectureError(_not_finite(component, item[0], item[1], paths))
            values.update(chunk.numpy().data)
        return values.digest()

    with ThreadPoolExecutor(usable_cores()) as pool:
        for part in pool.map(hashed, tensors.items()):
            digest.update(part)
    return digest.hexdigest()


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """The values in order, 16 bits widened to float32, which holds them exactly."""
    for chunk in tensor.detach().reshape(-1).split(CHUNK):
        chunk = chunk.cpu().contiguous()
        yield chunk.float() if chunk.is_floating_point() and chunk.element_size() < 4 else chunk


def _plain_config(part: Any) -> dict[str, Any]:
    config = getattr(part, "config", None)
    if config is None:
        return {}
    found = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {key: value for key, value in found.items() if not key.startswith("_") and key not in _WITHOUT_EFFECT}
    return json.loads(json.dumps(kept, sort_keys=True, default=str), parse_constant=str)  # lambda_min_clipped: -inf


def _not_finite(component: str, name: str, tensor: Tensor, paths: list[Path]) -> str:
    wrong = int((~torch.isfinite(tensor.detach())).sum())
    file = _file_with(component, name, paths)
    where = f"{component}.{name}" if file is None else f"{file}: {name} of {component}"
    return (
        f"{where} holds NaN or infinity ({wrong} of {tensor.numel()} values), and nothing can be calibrated on that; "
        "copy or download the model again, or save it anew from a type with a wider range"
    )


def _file_with(component: str, name: str, paths: list[Path]) -> Path | None:
    """The file of ``component`` that holds the tensor; transformers may store it under a longer or shorter name."""
    for path in paths:
        if path.parent.name != component:
            continue
        try:
            with safe_open(path, "pt") as file:
                keys = set(file.keys())
        except (SafetensorError, OSError):
            continue
        if any(key == name or key.endswith(f".{name}") or name.endswith(f".{key}") for key in keys):
            return path
    return None
