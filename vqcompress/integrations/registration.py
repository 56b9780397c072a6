"""Registers our classes when diffusers, transformers or peft is imported, or at once if it already is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from vqcompress.errors import UnsupportedError

# Upstream module that we extend -> our module whose `attach(upstream)` extends it.
ATTACHMENTS = {
    "diffusers.quantizers.auto": "vqcompress.integrations.diffusers_quantizer",
    "diffusers.models.modeling_utils": "vqcompress.integrations.model_mixin",
    "transformers.modeling_utils": "vqcompress.integrations.component_loading",
    "diffusers.pipelines.pipeline_utils": "vqcompress.integrations.diffusers_pipelines",
    "diffusers.loaders.lora_pipeline": "vqcompress.integrations.lora_shapes",
    "diffusers.models.controlnets.controlnet": "vqcompress.integrations.adapted_models",
    "diffusers.models.controlnets.controlnet_flux": "vqcompress.integrations.adapted_models",
    "diffusers.models.controlnets.controlnet_hunyuan": "vqcompress.integrations.adapted_models",
    "diffusers.models.controlnets.controlnet_qwenimage": "vqcompress.integrations.adapted_models",
    "diffusers.models.controlnets.controlnet_sd3": "vqcompress.integrations.adapted_models",
    "diffusers.models.controlnets.controlnet_sparsectrl": "vqcompress.integrations.adapted_models",
    "diffusers.models.controlnets.controlnet_union": "vqcompress.integrations.adapted_models",
    "diffusers.models.controlnets.controlnet_xs": "vqcompress.integrations.adapted_models",
    "diffusers.models.controlnets.controlnet_z_image": "vqcompress.integrations.adapted_models",
    "diffusers.models.unets.unet_motion_model": "vqcompress.integrations.adapted_models",
    "diffusers.loaders.single_file": "vqcompress.integrations.single_file",
    "diffusers.loaders.single_file_model": "vqcompress.integrations.single_file",
    "transformers.quantizers.auto": "vqcompress.integrations.transformers_quantizer",
    "peft.tuners.tuners_utils": "vqcompress.integrations.peft_tuners",
}


def register() -> None:
    """Make ``quant_method: vqcompress`` known to diffusers and transformers, whichever is imported first.

    Imports none of them. Calling it again changes nothing.
    """
    for upstream in ATTACHMENTS:
        if upstream in sys.modules:
            _attach(sys.modules[upstream])
    if not any(isinstance(finder, _PostImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PostImport())


def _attach(upstream: ModuleType) -> None:
    import_module(ATTACHMENTS[upstream.__name__]).attach(upstream)


class _PostImport(MetaPathFinder):
    """Finds the modules of `ATTACHMENTS` through the other finders and calls `attach` after one has been executed."""

    def __init__(self) -> None:
        self._searching: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a watched module with its loader extended; ``None`` for all others."""
        if fullname not in ATTACHMENTS or fullname in self._searching:
            return None
        self._searching.add(fullname)
        try:
            spec = find_spec(fullname)
        finally:
            self._searching.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _then_attach(spec.loader.exec_module)  # type: ignore[method-assign,assignment]
        return spec


def _then_attach(execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def exec_module(module: ModuleType) -> None:
        execute(module)
        _attach(module)

    return exec_module


def table(module: ModuleType, name: str) -> dict[str, Any]:
    """The registry ``name`` of ``module``. Raises `UnsupportedError` if this version of ``module`` does not have it."""
    registry = getattr(module, name, None)
    if not isinstance(registry, dict):
        raise UnsupportedError(
            f"{module.__name__}.{name} is no table any more, so vqcompress cannot register with "
            f"{module.__name__.split('.')[0]}; install a version in the range that pyproject.toml declares"
        )
    return registry
