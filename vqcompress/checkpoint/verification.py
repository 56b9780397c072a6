"""Verify that a compressed folder is what was written, and that its tensors fit its configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vqcompress.bundling import read_bundle, temporary_folder
from vqcompress.checkpoint.manifest import MANIFEST_NAME, bundle_problems, manifest_problems
from vqcompress.checkpoint.skeleton import network_problems, skeleton
from vqcompress.component_files import (
    ComponentFiles,
    StoredTensor,
    bytes_below,
    check_found_by_loaders,
    components,
    holds_codes,
    tensor_headers,
    undescribed,
    without_config,
)
from vqcompress.errors import ArchitectureError, CheckpointError, VQCompressError, first_line
from vqcompress.folder_files import StrPath, read_json, regular_size
from vqcompress.formats import UNCHECKED_CONTENTS
from vqcompress.formats.finite import is_finite
from vqcompress.formats.gate import tensor_problem
from vqcompress.layers import check_description
from vqcompress.layers.description import LayerSpecs, layer_specs
from vqcompress.layers.stored_component import header_problems, network_size
from vqcompress.openable import check_parts, check_regular, check_sampling, check_vocabularies
from vqcompress.time_limit import check_time, within

READ_FIRST = ("config.json", ".index.json")
"""How names of the JSON files end from which a loader learns what a component is."""
READ_TOO = 1 << 22
"""Bytes of any other JSON file, such as a tokenizer's, up to which it is read as well."""
BLOCK = 1 << 20
"""Numbers of a tensor that are looked at together."""


def verify(path: StrPath, seconds: float | None = None) -> list[str]:
    """Everything wrong with a compressed folder, a bundle or another safetensors file, one line each.

    An empty list means that it is sound. Checked: every file against the manifest; format version; every tensor of
    every packed layer against the config (name, shape, dtype); column rates and outliers against the formats and the
    length of the codes; every floating-point number finite; the network that each packed component's config describes
    against its weight files. Of a safetensors file that is no bundle, the header and the numbers.

    What comes later is not looked at where something before it is wrong: no network is built from a config that the
    manifest does not vouch for. It takes at most ``seconds`` of wall-clock time, by default `allowed_seconds` for the
    bytes on disk, which are read twice; what is not finished then is a problem too. The memory goes with the JSON files
    and headers, whose lengths are limited, and is independent of the weights'.
    """
    path = Path(path)
    if seconds is not None and not seconds >= 0:
        raise VQCompressError(f"seconds: {seconds} is no time")
    try:
        with within(allowed_seconds(path) if seconds is None else seconds):
            return _problems(path)
    except CheckpointError as error:
        return [str(error)]


def allowed_seconds(path: Path) -> float:
    """A minute and what reading at 10 MB/s takes, but no more than an hour: a file may say that it is longer than the
    disk."""
    length = bytes_below(path) if path.is_dir() else regular_size(path) or 0
    return min(60 + length / 10e6, 3600)


def _problems(path: Path) -> list[str]:
    if path.is_dir():
        return _folder_problems(path)
    if (bundle := read_bundle(path)) is not None:
        if problems := bundle_problems(bundle):
            return problems
        with temporary_folder(bundle) as folder:
            return _folder_problems(Path(folder))
    if regular_size(path) is None:
        return [f"{path} is neither a folder nor a file"]
    headers = tensor_headers([path])
    return [f"{path.name}/{key}: holds values that are not finite" for key in _not_finite(headers)]


def hash_problems(path: StrPath) -> list[str]:
    """What differs from the manifest of a folder or bundle, one line each: nothing where there is no manifest."""
    path = Path(path)
    if path.is_dir():
        return manifest_problems(path) if (path / MANIFEST_NAME).exists() else []
    bundle = read_bundle(path)
    return bundle_problems(bundle) if bundle is not None and MANIFEST_NAME in bundle.texts else []


def check_hashes(path: StrPath) -> None:
    """Raise `CheckpointError` that names the first differences from the manifest, see `hash_problems`."""
    refuse(path, hash_problems(path))


def refuse(path: StrPath, problems: list[str]) -> None:
    """Raise `CheckpointError` that names the first of ``problems``, if there are any."""
    if problems:
        raise CheckpointError(f"{path} is not sound: " + "; ".join(problems[:3]) + ("; …" if len(problems) > 3 else ""))


def _folder_problems(folder: Path) -> list[str]:
    check_regular(folder)
    check_parts(folder)
    check_sampling(folder)
    check_vocabularies(folder)
    problems = manifest_problems(folder)
    parts = components(folder)
    problems += _index_problems(folder)
    problems += without_config(folder)
    trusted = not problems
    for part in parts:
        problems += _component_problems(part, trusted)
    if not any(part.description for part in parts):
        problems.append(f"{folder}: no component is packed by vqcompress")
    return problems


def _index_problems(folder: Path) -> Iterator[str]:
    """Components that the index names and the folder lacks, classes in code of the folder's own, which loaders do not
    run, and configs and indices of components that are no JSON."""
    index = read_json(folder / "model_index.json")
    if isinstance(index.get("_class_name"), list):
        yield f"model_index.json: names a pipeline class in code of its own, {index['_class_name']}, which is not run"
    for name, entry in index.items():
        whole = isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) and part for part in entry)
        if name.startswith("_") or not whole:
            continue
        if not (folder / name).is_dir():
            yield f"{name}: is named in model_index.json, and there is no such folder"
            continue
        if (regular_size(folder / name / f"{entry[0]}.py") or 0) > 0:
            yield f"{name}: names a class in code of its own, {entry[0]}.py, which is not run"
        for path in sorted((folder / name).glob("*.json")):
            if path.name.endswith(READ_FIRST) or (regular_size(path) or 0) <= READ_TOO:
                try:
                    read_json(path)
                except CheckpointError as error:
                    yield str(error)


def _component_problems(part: ComponentFiles, trusted: bool) -> list[str]:
    """Of one that is not ``trusted`` the headers alone: its contents differ from what was written anyway."""
    try:
        headers, specs = part.tensors(), dict[str, Any]()
        if holds_codes(headers) and "quantization_config" not in part.config:
            return [undescribed(part.folder / "config.json")]
        if part.description is not None:
            check_found_by_loaders(part.folder)
            check_description(part.description, str(part.folder))
            specs = layer_specs(part.description)
        size = network_size(specs, headers, str(part.folder / "config.json"))
        problems = [f"{part.name}/{key}: {problem}" for key, problem in _differences(part, specs, headers)]
        if problems or not trusted:
            return problems
        if headers and (model := skeleton(part, size)) is not None:
            wrong = network_problems(model, headers, all_there=part.description is not None)
            problems = [f"{part.name}/{key}: {problem}" for key, problem in wrong]
        problems += [f"{part.name}/{key}: {problem}" for key, problem in _content_problems(specs, headers)]
        named = {problem.partition(":")[0] for problem in problems}
        keys = [f"{part.name}/{key}" for key in _not_finite(headers)]
    except (ArchitectureError, CheckpointError) as error:
        return [f"{part.name}: {error}"]
    except (OSError, SafetensorError) as error:  # a file that was another when its header was read
        return [f"{part.name}: {part.folder} cannot be read: {first_line(error)}; copy or download it again"]
    return problems + [f"{key}: holds values that are not finite" for key in keys if key not in named]


def _differences(
    part: ComponentFiles, specs: LayerSpecs, headers: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, str]]:
    return header_problems(part.description, specs, headers) if part.description is not None else iter(())


def _content_problems(specs: LayerSpecs, headers: Mapping[str, StoredTensor]) -> Iterator[tuple[str, str]]:
    """``(key, problem)`` of tensors of packed layers, of the right shape, whose contents do not fit."""
    by_file: dict[Path, list[tuple[str, str]]] = {}
    for layer, (spec, shape) in specs.items():
        for name in spec.tensor_shapes(shape[0], 1):
            if name not in UNCHECKED_CONTENTS:
                by_file.setdefault(headers[f"{layer}.{name}"].file, []).append((layer, name))
    for path, checked in by_file.items():
        for (layer, name), tensor in _opened(path, checked):
            if problem := tensor_problem(*specs[layer], name, tensor):
                yield f"{layer}.{name}", problem


def _opened(path: Path, wanted: list[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], Tensor]]:
    with safe_open(path, framework="pt") as file:
        for layer, name in wanted:
            check_time()
            yield (layer, name), file.get_tensor(f"{layer}.{name}")


def _not_finite(headers: Mapping[str, StoredTensor]) -> Iterator[str]:
    """Keys of tensors with infinities or NaN, a block at a time: no tensor is in memory whole."""
    for path in sorted({tensor.file for tensor in headers.values()}):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    if not all(map(is_finite, _blocks(file.get_tensor(key)))):
                        yield key
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; copy or download it again") from None


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    for start in range(0, len(flat) if flat.is_floating_point() else 0, BLOCK):
        check_time()
        yield flat[start : start + BLOCK]
