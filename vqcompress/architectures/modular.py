"""Modular pipelines of diffusers: blocks in place of a call, around the same networks as a plain pipeline class.

A modular pipeline opens the folder of a plain one, so that is what a compressed one becomes: the plain class calibrates
and writes, `DiffusionPipeline` and `ModularPipeline` both open what it wrote.
"""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

import diffusers

from vqcompress.architectures.architecture import Pipeline
from vqcompress.architectures.folder import MODULAR
from vqcompress.errors import ArchitectureError

PLAIN = {
    "Flux2KleinBaseModularPipeline": "Flux2KleinPipeline",
    "HeliosPyramidDistilledModularPipeline": "HeliosPyramidPipeline",
    "Krea2TurboModularPipeline": "Krea2Pipeline",
    "QwenImage21TurboModularPipeline": "QwenImage21Pipeline",
    "Wan22Image2VideoModularPipeline": "WanImageToVideoPipeline",
    "Wan22ModularPipeline": "WanPipeline",
    "Wan22VaceModularPipeline": "WanVACEPipeline",
    "WanImage2VideoModularPipeline": "WanImageToVideoPipeline",
}
"""Modular class -> plain class, where the names differ by more than the word."""


def is_modular(pipeline: Pipeline) -> bool:
    """Whether ``pipeline`` is one of blocks."""
    return any(kind.__name__ == "ModularPipeline" for kind in type(pipeline).__mro__)


def plain_class(pipeline: Pipeline) -> Any:
    """The plain class around the same networks; None where diffusers has none."""
    name = type(pipeline).__name__
    kind = getattr(diffusers, PLAIN.get(name, name.replace("Modular", "")), None)
    return None if kind is type(pipeline) else kind


def why_refused(pipeline: Pipeline) -> str:
    """Why a modular pipeline itself has no family, and what takes it."""
    name = type(pipeline).__name__
    if plain_class(pipeline) is None:
        return (
            f"{name} is a modular pipeline, which has blocks in place of a call, and diffusers has no plain class of "
            "this kind that could calibrate it: it can only be planned (quantize --dry-run)"
        )
    return f"{name} {MODULAR}"


def plain_pipeline(pipeline: Pipeline) -> Pipeline:
    """A pipeline of the plain class around the networks of a modular one; any other pipeline as it is.

    Raises `ArchitectureError` where diffusers has no plain class of that kind, or components are not loaded.
    """
    if not is_modular(pipeline):
        return pipeline
    name, kind = type(pipeline).__name__, plain_class(pipeline)
    if kind is None:
        raise ArchitectureError(why_refused(pipeline))
    wanted = {key: parameter for key, parameter in signature(kind.__init__).parameters.items() if key != "self"}
    given = _given(pipeline, wanted)
    if missing := [key for key, parameter in wanted.items() if key not in given and _is_needed(kind, key, parameter)]:
        raise ArchitectureError(
            f"this {name} has no {', '.join(missing)}, which a {kind.__name__} has: call load_components() first, or "
            "update_components(…) with those that it was made without"
        )
    return kind(**dict.fromkeys((key for key in wanted if wanted[key].default is Parameter.empty), None) | given)


def _given(pipeline: Pipeline, wanted: dict[str, Parameter]) -> dict[str, Any]:
    """Components and settings that both classes know."""
    known = {**dict(pipeline.config), **pipeline.components}
    return {
        key: known[key] for key in wanted if known.get(key) is not None and not isinstance(known[key], tuple | list)
    }


def _is_needed(kind: Any, key: str, parameter: Parameter) -> bool:
    return parameter.default is Parameter.empty and key not in getattr(kind, "_optional_components", ())
