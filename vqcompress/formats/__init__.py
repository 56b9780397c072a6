"""The packed formats: one spec class each, with the one decoder that learning, fine-tuning and loading share."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vqcompress.errors import CheckpointError
from vqcompress.formats.additive import AdditiveSpec
from vqcompress.formats.scalar import ScalarSpec
from vqcompress.formats.trellis import TrellisSpec

FormatSpec = ScalarSpec | AdditiveSpec | TrellisSpec

FORMATS: dict[str, type[FormatSpec]] = {spec.format: spec for spec in (ScalarSpec, AdditiveSpec, TrellisSpec)}

_DEFAULTS = {name: tuple((field.name, field.default) for field in fields(spec)) for name, spec in FORMATS.items()}


def spec_to_dict(spec: FormatSpec) -> dict[str, Any]:
    """JSON form of a spec, ``{"format": name, ...fields}``; a field that has its default is left out."""
    data: dict[str, Any] = {"format": spec.format}
    for name, default in _DEFAULTS[spec.format]:
        if (value := getattr(spec, name)) != default:
            data[name] = list(value) if isinstance(value, tuple) else value
    return data


def shared_codebook(spec: FormatSpec) -> str | None:
    """Name of the component's shared tensor that part of the code lies in, or ``None``."""
    return None if isinstance(spec, ScalarSpec) else spec.codebook


def spec_from_dict(data: dict[str, Any]) -> FormatSpec:
    """The inverse of `spec_to_dict`. Raises `CheckpointError` for a format or field this version lacks."""
    fields = dict(data)
    name = fields.pop("format", None)
    if name not in FORMATS:
        raise CheckpointError(
            f"unknown weight format {name!r}; this version reads {', '.join(FORMATS)}; update vqcompress"
        )
    try:
        return FORMATS[name](**fields)
    except TypeError as error:
        raise CheckpointError(f"a {name} weight is described with fields this version does not know: {error}") from None


__all__ = [
    "FORMATS",
    "AdditiveSpec",
    "FormatSpec",
    "ScalarSpec",
    "TrellisSpec",
    "shared_codebook",
    "spec_from_dict",
    "spec_to_dict",
]
