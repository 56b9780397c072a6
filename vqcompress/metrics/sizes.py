"""How many bytes is it, on disk?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vqcompress.errors import CheckpointError
from vqcompress.formats import spec_from_dict
from vqcompress.matrix_view import matrix_shape

SHARED = "vq_shared"
"""Under this name a component keeps the codebooks that its layers share."""


def folder_bytes(folder: str | Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def weight_bytes(component: str | Path) -> int:
    """Bytes of a component's safetensors files, shards included; other precision variants are not counted."""
    return sum(path.stat().st_size for path in weight_files(component))


def weight_files(component: str | Path) -> list[Path]:
    """A component's safetensors files; of ``x.safetensors`` and ``x.fp16.safetensors`` only the first is taken."""
    files = sorted(Path(component).glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{component} holds no safetensors file: it is no component folder, or is incomplete")
    plain = [path for path in files if len(path.suffixes) == 1]
    return plain or files


def stored_bits(component: str | Path) -> dict[str, float]:
    """``bits_per_weight``, ``quantized_weights`` and ``quantized_bytes`` of a compressed component's folder.

    Counts the stored bytes of every tensor that the quantized layers decode from (codes, codebooks shared or not,
    scales, rates, zeros); biases are not among them. Raises `CheckpointError` for a folder without quantized layers.
    """
    layers, shared = _description(Path(component))
    sizes = tensor_bytes(component)
    nbytes = sum(sizes[key] for key in [*_stored_keys(layers), *(f"{SHARED}.{name}" for name in shared)])
    weights = sum(math.prod(layer["shape"]) for layer in layers.values())
    return {
        "bits_per_weight": 8 * nbytes / weights,
        "quantized_weights": float(weights),
        "quantized_bytes": float(nbytes),
    }


def tensor_bytes(component: str | Path) -> dict[str, int]:
    """Tensor name -> stored bytes, from the headers of a component's safetensors files; no tensor is read."""
    sizes: dict[str, int] = {}
    for path in weight_files(component):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        sizes |= {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()}
    return sizes


def layer_bits(component: str | Path) -> dict[str, float]:
    """Layer -> bits stored with it over its weights; codebooks that layers share are not among them."""
    layers, _ = _description(Path(component))
    sizes = tensor_bytes(component)
    return {
        name: 8 * sum(sizes[key] for key in _stored_keys({name: layer})) / math.prod(layer["shape"])
        for name, layer in layers.items()
    }


def _stored_keys(layers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, layer in layers.items():
        spec = spec_from_dict({key: value for key, value in layer.items() if key != "shape"})
        yield from (f"{name}.{tensor}" for tensor in spec.tensor_shapes(*matrix_shape(layer["shape"])))


def _description(component: Path) -> tuple[dict[str, dict[str, Any]], dict[str, list[int]]]:
    config = json.loads((component / "config.json").read_text())
    quantization = config.get("quantization_config") or {}
    if quantization.get("quant_method") != "vqcompress" or not quantization.get("layers"):
        raise CheckpointError(f"{component} has no layers quantized by vqcompress, so it has no bits to count")
    return quantization["layers"], quantization.get("shared") or {}
