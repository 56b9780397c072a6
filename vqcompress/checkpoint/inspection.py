"""What a pipeline folder holds: bits a weight, bytes on disk, and a row per packed layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqcompress.component_files import ComponentFiles, StoredTensor, bytes_below, components
from vqcompress.errors import CheckpointError
from vqcompress.folder_files import StrPath, read_json
from vqcompress.layers import SHARED_NAME, check_description
from vqcompress.layers.description import layer_specs
from vqcompress.matrix_view import matrix_shape


def inspect(folder: StrPath) -> dict[str, Any]:
    """Sizes of a compressed (or dense) pipeline folder, read from headers only.

    ``bits_per_weight`` is everything stored for the packed layers (codes, scales, rates, codebooks; shared codebooks
    once) and for those that a budget left dense, in bits, over the number of weights they stand for; ``None`` where
    nothing is packed. ``kept`` are layers that were not to be quantized, with the reason. ``bytes`` is the whole
    folder on disk. ``components`` has those with packed layers: one row per layer under ``layers``, how many layers
    have each of the ``formats``, how many ``outliers`` are stored beside codes and, with their dense tensors included,
    ``component_bits_per_weight``; ``layers`` has the rows of all; ``dense_components`` the rest. Raises
    `CheckpointError` when ``folder`` is no pipeline or a file cannot be read.
    """
    folder = Path(folder)
    parts = {part.name: _component(part) for part in components(folder)}
    packed = {name: part for name, part in parts.items() if part["packed_layers"]}
    return {
        "folder": str(folder),
        "pipeline": read_json(folder / "model_index.json").get("_class_name"),
        "bits_per_weight": _bits(_total(packed, "packed_bytes"), _total(packed, "packed_weights")),
        "bytes": bytes_below(folder),
        "components": packed,
        "dense_components": {name: _dense(part) for name, part in parts.items() if name not in packed},
        "layers": [row for part in packed.values() for row in part["layers"]],
    }


def _total(parts: dict[str, dict[str, Any]], key: str) -> int:
    return sum(part[key] for part in parts.values())


def _dense(part: dict[str, Any]) -> dict[str, Any]:
    return {key: part[key] for key in ("class", "bytes", "weights", "component_bits_per_weight")}


def _component(part: ComponentFiles) -> dict[str, Any]:
    tensors = part.tensors()
    packed = _layer_rows(part, tensors)
    rows = [*packed, *_dense_rows(part, tensors)]
    shared = sum(tensor.nbytes for key, tensor in tensors.items() if key.startswith(f"{SHARED_NAME}."))
    packed_bytes = sum(row["bytes"] for row in rows) + shared
    packed_weights = sum(math.prod(row["shape"]) for row in rows)
    stored_bytes = sum(tensor.nbytes for tensor in tensors.values())
    dense = _dense_elements(tensors, rows)
    return {
        "class": part.class_name,
        "bytes": part.nbytes,
        "bits_per_weight": _bits(packed_bytes, packed_weights),
        "component_bits_per_weight": _bits(stored_bytes, packed_weights + dense),
        "weights": packed_weights + dense,
        "packed_weights": packed_weights,
        "packed_bytes": packed_bytes,
        "shared_codebook_bytes": shared,
        "packed_layers": len(packed),
        "outliers": sum(row["outliers"] for row in packed),
        "formats": dict(Counter(row["format"] for row in rows)),
        "layers": rows,
        "kept": dict((part.description or {}).get("kept", {})),
    }


def _layer_rows(part: ComponentFiles, tensors: dict[str, StoredTensor]) -> list[dict[str, Any]]:
    if part.description is None:
        return []
    check_description(part.description, str(part.folder))
    rows = []
    for name, (spec, shape) in layer_specs(part.description).items():
        keys = [f"{name}.{key}" for key in spec.tensor_shapes(*matrix_shape(shape))]
        if missing := [key for key in keys if key not in tensors]:
            raise CheckpointError(
                f"{part.folder}: {missing[0]} is missing from the weight files; run `vqcompress verify`"
            )
        nbytes = sum(tensors[key].nbytes for key in keys)
        rows.append(_row(part, name, spec.format, shape, nbytes, getattr(spec, "outliers", 0)))
    return rows


def _dense_rows(part: ComponentFiles, tensors: dict[str, StoredTensor]) -> list[dict[str, Any]]:
    """Layers that the budget left dense: their weights count, they share its bits."""
    stored = {name: tensors.get(f"{name}.weight") for name in (part.description or {}).get("dense", {})}
    return [_row(part, name, "dense", weight.shape, weight.nbytes) for name, weight in stored.items() if weight]


def _row(
    part: ComponentFiles, name: str, form: str, shape: Sequence[int], nbytes: int, outliers: int = 0
) -> dict[str, Any]:
    return {
        "component": part.name,
        "name": name,
        "format": form,
        "shape": list(shape),
        "bits_per_weight": _bits(nbytes, math.prod(shape)),
        "bytes": nbytes,
        "outliers": outliers,
    }


def _dense_elements(tensors: dict[str, StoredTensor], rows: list[dict[str, Any]]) -> int:
    packed = {row["name"] for row in rows} | {SHARED_NAME}
    return sum(
        t.elements for key, t in tensors.items() if key.rpartition(".")[0] not in packed or key.endswith(".bias")
    )


def _bits(nbytes: int, weights: int) -> float | None:
    return 8 * nbytes / weights if weights else None
