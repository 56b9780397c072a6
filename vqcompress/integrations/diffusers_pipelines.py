"""Support in ``DiffusionPipeline.from_pretrained`` for folders with pipeline or network classes of vqcompress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from vqcompress.component_files import MANIFEST_NAME, without_config
from vqcompress.errors import CheckpointError, UnsupportedError
from vqcompress.integrations.opening_checks import check_first, gc_disabled, local_folder
from vqcompress.openable import check_parts, check_regular, check_sampling

_CHOICE = "_get_pipeline_class"


def attach(pipeline_utils: ModuleType) -> None:
    """Wrap the class lookup of ``diffusers.pipelines.pipeline_utils``. Calling it again changes nothing."""
    upstream = getattr(pipeline_utils, _CHOICE, None)
    if upstream is None:
        raise UnsupportedError(
            f"{pipeline_utils.__name__}.{_CHOICE} is gone, so vqcompress cannot open its own pipelines through "
            "diffusers; install a version in the range that pyproject.toml declares"
        )
    if not isinstance(upstream, OursFirst):
        setattr(pipeline_utils, _CHOICE, OursFirst(upstream))
    check_first(pipeline_utils, "DiffusionPipeline", "from_pretrained", look_first)


def look_first(upstream: Any, cls: type, source: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """``from_pretrained`` after a look at the folder: it would wait for a pipe and read a device to its end."""
    folder = local_folder(source, options)
    if folder is not None:
        with gc_disabled():
            check_regular(folder)
        check_parts(folder)
        check_sampling(folder)
        if (folder / MANIFEST_NAME).exists() and (problem := next(without_config(folder), None)):
            raise CheckpointError(problem)
    return upstream(cls, *source, **options)


class OursFirst:
    """Returns the class for a pipeline's index: vqcompress's if the index names one, else diffusers' choice."""

    def __init__(self, upstream: Callable[..., type]) -> None:
        self.upstream = upstream

    def __call__(self, asked: type, config: Mapping[str, Any] | None = None, **options: Any) -> type:
        from vqcompress.models.pipelines import PIPELINES

        index = config or {}
        _import_networks(index)
        name = index.get("_class_name")
        if asked.__name__ == "DiffusionPipeline" and isinstance(name, str) and name in PIPELINES:
            return getattr(import_module(PIPELINES[name]), name)
        return self.upstream(asked, config=config, **options)


def _import_networks(index: Mapping[str, Any]) -> None:
    """Import the vqcompress networks named in ``index``: diffusers finds components only in imported modules."""
    from vqcompress.models.presets import NETWORKS

    parts = (part for part in index.values() if isinstance(part, list | tuple) and part)
    named = {part[0] for part in parts if isinstance(part[0], str)}
    for module in {network.split(":")[0] for network in NETWORKS.values()} & named:
        import_module(module)
