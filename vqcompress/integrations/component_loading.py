"""``from_pretrained`` of a single network: the folder is looked at before anything is built from its config.

Attached to diffusers' and transformers' model classes. Only local folders whose config says ``vqcompress`` are
concerned; all others go straight to the library.
"""

from __future__ import annotations

import functools
from os import PathLike, fspath
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from vqcompress.component_files import packed_description, tensor_headers, weight_files
from vqcompress.errors import UnsupportedError
from vqcompress.folder_files import check_regular, read_json
from vqcompress.integrations.stored_tensors import PackedTensorError
from vqcompress.layers import check_description
from vqcompress.layers.description import layer_specs
from vqcompress.layers.stored_component import network_size
from vqcompress.network_size import at_most, build_without_memory, may_exceed

CLASSES = {"diffusers.models.modeling_utils": "ModelMixin", "transformers.modeling_utils": "PreTrainedModel"}
SOURCE = "pretrained_model_name_or_path"


def attach(module: ModuleType) -> None:
    """Make ``from_pretrained`` of ``module``'s model class check local folders. Calling it again changes nothing."""
    kind: Any = getattr(module, CLASSES[module.__name__], None)
    method = vars(kind).get("from_pretrained") if kind is not None else None
    if not isinstance(method, classmethod):
        raise UnsupportedError(
            f"{module.__name__}.{CLASSES[module.__name__]}.from_pretrained is gone, so vqcompress cannot check packed "
            "networks before they are built; install a version in the range that pyproject.toml declares"
        )
    if not getattr(method.__func__, "checks_folders", False):
        kind.from_pretrained = classmethod(_checked(method.__func__))


def _checked(upstream: Any) -> Any:
    @functools.wraps(upstream)
    def from_pretrained(cls: type, *source: Any, **options: Any) -> Any:
        folder = local_folder(source[0] if source else options.get(SOURCE), options.get("subfolder"))
        config = None if folder is None else _packed_config(folder)
        if folder is None or config is None:
            return upstream(cls, *source, **options)
        return _open(upstream, cls, folder, config, source, options)

    from_pretrained.__dict__["checks_folders"] = True
    return from_pretrained


def local_folder(source: Any, subfolder: Any = None) -> Path | None:
    """The folder that ``source`` names, or ``None``; ``source`` can also be a Hub id."""
    if not isinstance(source, str | PathLike):
        return None
    folder = Path(fspath(source)) / (subfolder or "")
    return folder if folder.is_dir() else None


def _packed_config(folder: Path) -> dict[str, Any] | None:
    """The config of a component that is packed by vqcompress, ``None`` for any other."""
    path = folder / "config.json"
    if not path.exists():
        return None
    config = read_json(path)
    return config if packed_description(config) is not None else None


def _open(upstream: Any, cls: Any, folder: Path, config: dict[str, Any], source: Any, options: dict[str, Any]) -> Any:
    where = str(folder / "config.json")
    description = packed_description(config) or {}
    check_regular(folder)
    check_description(description, where)
    headers = tensor_headers(weight_files(folder))
    size = network_size(layer_specs(description), headers, where)
    if may_exceed(config, size) and (build := _builder(cls, config)) is not None:
        build_without_memory(build, size, where)
    try:
        with at_most(size, where):
            return upstream(cls, *source, **options)
    except PackedTensorError as error:
        file = headers[error.key].file if error.key in headers else folder
        raise PackedTensorError(error.key, error.problem, error.file or file) from None


def _builder(cls: Any, config: dict[str, Any]) -> Any:
    """Builds the dense network of ``config``, where diffusers does it; transformers builds without memory anyway."""
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    return (lambda: cls.from_config(plain)) if issubclass(cls, nn.Module) and hasattr(cls, "from_config") else None
