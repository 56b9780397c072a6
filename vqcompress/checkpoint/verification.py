"""Verify that a compressed folder is what was written, and that its tensors fit its configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn

from vqcompress.checkpoint.component_files import ComponentFiles, StoredTensor, components
from vqcompress.checkpoint.manifest import manifest_problems
from vqcompress.errors import ArchitectureError, CheckpointError
from vqcompress.formats import CHECKED_TENSORS
from vqcompress.layers import SHARED_NAME, check_description, empty_layers
from vqcompress.layers.description import layer_specs
from vqcompress.matrix_view import matrix_shape, stored_shape

DTYPES = {torch.int8: "I8", torch.float16: "F16", torch.int32: "I32"}


def verify(folder: str | Path) -> list[str]:
    """Everything wrong with a compressed folder, one line each; an empty list means it is sound.

    Checked: every file against the manifest; format version; every tensor of every packed layer against the config
    (name, shape, dtype); column rates against the formats and the length of the codes; every floating-point number
    finite.
    """
    folder = Path(folder)
    try:
        problems = manifest_problems(folder)
        parts = components(folder)
    except CheckpointError as error:
        return [str(error)]
    for part in parts:
        problems += _component_problems(part)
    if not any(part.description for part in parts):
        problems.append(f"{folder}: no component is packed by vqcompress")
    return problems


def _component_problems(part: ComponentFiles) -> list[str]:
    try:
        tensors = part.tensors()
        problems = list(_packed_problems(part, tensors)) if part.description else []
        packed_skeleton(part)
    except (ArchitectureError, CheckpointError) as error:
        return [f"{part.name}: {error}"]
    return problems + [f"{part.name}/{key}: holds values that are not finite" for key in _not_finite(part)]


def _packed_problems(part: ComponentFiles, tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    description: dict[str, Any] = part.description or {}
    check_description(description, str(part.folder))
    for name, shape in description["shared"].items():
        yield from _tensor_problems(part, tensors, f"{SHARED_NAME}.{name}", tuple(shape), torch.float16)
    for layer, (spec, shape) in layer_specs(description).items():
        found = list(_layer_problems(part, tensors, layer, spec, shape))
        yield from found
        if not found and (problem := spec.code_problem(*matrix_shape(shape), _read(tensors, layer, spec, shape))):
            yield f"{part.name}/{layer}: {problem}"


def _layer_problems(
    part: ComponentFiles, tensors: Mapping[str, StoredTensor], layer: str, spec: Any, shape: Any
) -> Iterator[str]:
    for name, (size, dtype) in spec.tensor_shapes(*matrix_shape(shape)).items():
        size = stored_shape(len(shape), size) if name == "weight" else size
        yield from _tensor_problems(part, tensors, f"{layer}.{name}", size, dtype)


def _tensor_problems(
    part: ComponentFiles, tensors: Mapping[str, StoredTensor], key: str, shape: tuple[int, ...], dtype: torch.dtype
) -> Iterator[str]:
    tensor = tensors.get(key)
    if tensor is None:
        yield f"{part.name}/{key}: is missing"
    elif (tensor.shape, tensor.dtype) != (shape, DTYPES[dtype]):
        yield f"{part.name}/{key}: is {tensor.dtype} {tensor.shape}, the config says {DTYPES[dtype]} {shape}"


def _read(tensors: Mapping[str, StoredTensor], layer: str, spec: Any, shape: Any) -> dict[str, Tensor]:
    names = [name for name in spec.tensor_shapes(*matrix_shape(shape)) if name in CHECKED_TENSORS]
    found = {}
    for name in names:
        with safe_open(tensors[f"{layer}.{name}"].file, framework="pt") as file:
            found[name] = file.get_tensor(f"{layer}.{name}")
    return found


def _not_finite(part: ComponentFiles) -> Iterator[str]:
    for path in part.weight_files():
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = file.get_tensor(key)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    yield key


def packed_skeleton(part: ComponentFiles) -> nn.Module | None:
    """The component on the meta device with empty packed layers; ``None`` for a library that is not diffusers.

    Raises `ArchitectureError` when a packed layer is not in the model that the config describes, or of another shape.
    """
    if part.library != "diffusers" or part.description is None:
        return None
    kind: Any = getattr(import_module("diffusers"), part.class_name, None)
    if kind is None:
        return None
    config = {key: value for key, value in part.config.items() if key != "quantization_config"}
    with init_empty_weights():
        model = kind.from_config(config)
    empty_layers(model, part.description)
    return model
