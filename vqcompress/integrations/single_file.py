"""``from_single_file`` for bundles: compressed pipelines as one safetensors file."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from types import ModuleType
from typing import Any

from vqcompress.bundling import Bundle, keep_for, read_bundle, temporary_folder
from vqcompress.errors import CheckpointError
from vqcompress.integrations.opening_checks import check_first

MIXINS = {
    "diffusers.loaders.single_file": "FromSingleFileMixin",
    "diffusers.loaders.single_file_model": "FromOriginalModelMixin",
}
SOURCES = ("pretrained_model_link_or_path_or_dict", "pretrained_model_link_or_path")
# Arguments that give the source of a bare checkpoint's configuration; a bundle contains its own.
NOT_NEEDED = (*SOURCES, "config", "original_config", "original_config_file", "subfolder", "quantization_config")


def attach(module: ModuleType) -> None:
    """Make ``from_single_file`` of ``module``'s mixin read bundles first. Calling it again changes nothing."""
    check_first(module, MIXINS[module.__name__], "from_single_file", open_bundle)


def open_bundle(upstream: Any, cls: Any, source: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """``from_single_file``, where the file is a bundle from the folder that it unpacks to."""
    bundle = _bundle(source[0] if source else next((options[key] for key in SOURCES if key in options), None))
    return upstream(cls, *source, **options) if bundle is None else _open(cls, bundle, options)


def _bundle(source: Any) -> Bundle | None:
    """The bundle at ``source``, or None; ``source`` can also be a URL or a state dict."""
    return read_bundle(fspath(source)) if isinstance(source, str | PathLike) else None


def _open(cls: Any, bundle: Bundle, options: dict[str, Any]) -> Any:
    component = None if hasattr(cls, "components") else _component(cls, bundle, options.get("subfolder"))
    given = {key: value for key, value in options.items() if key not in NOT_NEEDED}
    directory = temporary_folder(bundle, component)
    folder = Path(directory.name) / (component or "")
    opened = cls.from_pretrained(str(folder), **{**given, "use_safetensors": True})
    keep_for(opened, directory)
    return opened


def _component(cls: type, bundle: Bundle, asked: str | None) -> str:
    """The name of the component with class ``cls``. Raises `CheckpointError` if there is not exactly one."""
    parts = {name: entry for name, entry in bundle.index.items() if isinstance(entry, list) and len(entry) == 2}
    classes = {name: entry[1] for name, entry in parts.items() if isinstance(entry[1], str)}
    fitting = [name for name, kind in classes.items() if kind == cls.__name__ and asked in (None, name)]
    if len(fitting) != 1:
        held = ", ".join(f"{name} ({kind})" for name, kind in classes.items())
        raise CheckpointError(f"{bundle.path} has {len(fitting)} parts that are a {cls.__name__}; it holds {held}")
    return fitting[0]
