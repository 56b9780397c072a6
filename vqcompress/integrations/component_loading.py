"""``from_pretrained`` of a single network: the folder is looked at before anything is built from its config.

Attached to diffusers' and transformers' model classes. Only local folders that vqcompress wrote are concerned; all
others go straight to the library.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from vqcompress.component_files import (
    MANIFEST_NAME,
    StoredTensor,
    component_headers,
    holds_codes,
    packed_description,
    undescribed,
    weight_files,
)
from vqcompress.errors import CheckpointError
from vqcompress.folder_files import read_json
from vqcompress.integrations import stored_names
from vqcompress.integrations.opening_checks import check_first, gc_disabled, local_folder
from vqcompress.integrations.stored_tensors import PackedTensorError
from vqcompress.layers import check_description
from vqcompress.layers.description import LayerSpecs, already_checked, layer_specs
from vqcompress.layers.stored_component import header_problems, network_size
from vqcompress.network_size import NetworkSize, at_most, build_without_memory, may_exceed
from vqcompress.openable import check_regular

DENSE: dict[str, Any] = {"layers": {}, "shared": {}}
"""The description of a component without packed layers."""
TRANSFORMERS = "transformers.modeling_utils"
CLASSES = {"diffusers.models.modeling_utils": "ModelMixin", TRANSFORMERS: "PreTrainedModel"}


def attach(module: ModuleType) -> None:
    """Make ``from_pretrained`` of ``module``'s model class check local folders, and transformers' ``save_pretrained``
    choose names that loading finds. Calling it again changes nothing."""
    check_first(module, CLASSES[module.__name__], "from_pretrained", check_packed)
    if module.__name__ == TRANSFORMERS:
        stored_names.attach(module)


def check_packed(upstream: Any, cls: Any, source: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """``from_pretrained``; a folder with packed layers is checked, and its files bound what may be built from its
    config, as they do for the dense components of a pipeline that vqcompress wrote.

    Raises `CheckpointError` that names file and tensor.
    """
    folder = local_folder(source, options)
    config = None if folder is None else _config_to_check(folder)
    if folder is None or config is None:
        return upstream(cls, *source, **options)
    description = packed_description(config) or DENSE
    with gc_disabled():
        size, headers, specs, where = _checked(folder, description)
    if holds_codes(headers) and "quantization_config" not in config:
        raise CheckpointError(undescribed(folder / "config.json"))
    if may_exceed(config, size) and (build := _builder(cls, config)) is not None:
        build_without_memory(build, size, where)
    try:
        with at_most(size, where), already_checked(description, specs):
            return upstream(cls, *source, **options)
    except PackedTensorError as error:
        file = headers[error.key].file if error.key in headers else folder
        raise PackedTensorError(error.key, error.problem, error.file or file) from None


def _config_to_check(folder: Path) -> dict[str, Any] | None:
    """The config of a component that vqcompress wrote, ``None`` for any other."""
    path = folder / "config.json"
    if not path.exists():
        return None
    config = read_json(path)
    ours = packed_description(config) is not None or ((folder.parent / MANIFEST_NAME).exists() and weight_files(folder))
    return config if ours else None


def _checked(folder: Path, description: dict[str, Any]) -> tuple[NetworkSize, dict[str, StoredTensor], LayerSpecs, str]:
    """The size of the network in ``folder``, the headers of its files, its specs, and where its config is.

    Raises `CheckpointError` where the description and the headers do not fit.
    """
    where = str(folder / "config.json")
    check_regular(folder)
    if description is not DENSE:
        check_description(description, where)
    headers, specs = component_headers(folder), layer_specs(description)
    size = network_size(specs, headers, where)
    for key, problem in header_problems(description, specs, headers):
        raise PackedTensorError(key, problem, headers[key].file if key in headers else folder)
    return size, headers, specs, where


def _builder(cls: Any, config: dict[str, Any]) -> Any:
    """Builds the dense network of ``config``, where diffusers does it; transformers builds without memory anyway."""
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    return (lambda: cls.from_config(plain)) if issubclass(cls, nn.Module) and hasattr(cls, "from_config") else None
