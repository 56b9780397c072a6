"""The network that a component's config describes, without memory, against the headers of its weight files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from torch import nn

from vqcompress.component_files import ComponentFiles, StoredTensor
from vqcompress.errors import CheckpointError
from vqcompress.layers import empty_layers
from vqcompress.layers.module_names import fit_names, fitting_name
from vqcompress.models.presets import NETWORKS
from vqcompress.network_size import NetworkSize, build_without_memory


def skeleton(part: ComponentFiles, size: NetworkSize) -> nn.Module | None:
    """The component on the meta device, packed layers empty; ``None`` for one that another library packed or builds.

    Raises `ArchitectureError` when a packed layer is not in the model that the config describes, or of another shape,
    and `CheckpointError` when that model is larger than ``size``, that of its files, or none at all.
    """
    own = {network.split(":")[0] for network in NETWORKS.values()}
    packed_by_others = part.description is None and "quantization_config" in part.config
    if packed_by_others or part.library not in {"diffusers", "transformers", *own}:
        return None
    found = getattr(import_module(part.library), part.class_name, None)
    kind: Any = found if isinstance(found, type) and issubclass(found, nn.Module) else None
    if kind is None:
        raise CheckpointError(f"{part.library} has no network called {part.class_name[:100]!r}")
    config = {key: value for key, value in part.config.items() if key != "quantization_config"}
    where = str(part.folder / "config.json")
    build = (lambda: kind(kind.config_class.from_dict(config))) if part.library == "transformers" else None
    model = build_without_memory(build or (lambda: kind.from_config(config)), size, where)
    if model is not None and part.description is not None:
        empty_layers(model, fit_names(model, part.description))
    return model


def network_problems(
    model: nn.Module, headers: Mapping[str, StoredTensor], all_there: bool = True
) -> Iterator[tuple[str, str]]:
    """``(key, problem)`` of each tensor of ``model`` that has another shape or, with ``all_there``, is missing.

    Libraries rename and tie tensors of dense components while they load them, so none is missed there.
    """
    sizes = {key: tuple(tensor.shape) for key, tensor in model.state_dict(keep_vars=True).items()}
    found = {fitting_name(key, sizes): key for key in headers}
    for key, shape in sizes.items():
        if key in found and headers[found[key]].shape != shape:
            yield found[key], f"is {headers[found[key]].shape}, the network that the config describes has {shape}"
    if not all_there:
        return
    ignored = [*(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())]
    for key, _ in model.named_parameters():
        if key not in found and not any(re.search(pattern, key) for pattern in ignored):
            yield key, "is missing, the network that the config describes has it"
