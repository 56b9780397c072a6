"""The packed formats: one spec class each, with the one decoder that learning, fine-tuning and loading share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import lru_cache
from reprlib import repr as short_repr
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from vqcompress.errors import CheckpointError
from vqcompress.formats.additive import AdditiveSpec
from vqcompress.formats.column_scales import COLUMN_SCALES_ON_DISK
from vqcompress.formats.gate import check
from vqcompress.formats.scalar import ScalarSpec
from vqcompress.formats.trellis import TrellisSpec

TensorShapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Name -> (shape, dtype) of each tensor that a layer stores."""


class FormatSpec(Protocol):
    """What every format's spec, a frozen dataclass of plain numbers and strings, says about its packed weights.

    Weights are matrices ``[outputs, columns]``; ``tensors`` are a layer's by name, a shared codebook under
    ``codebooks``.
    """

    format: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __hash__(self) -> int: ...

    @property
    def codebook(self) -> str | None:
        """Name of the component's shared tensor that part of the code lies in, or ``None``."""

    @property
    def codebook_shape(self) -> tuple[int, ...]:
        """Shape of the codebooks or learned tables, empty where the format has none."""

    def tensor_shapes(self, outputs: int, columns: int) -> TensorShapes:
        """The tensors stored with the layer (a shared codebook is not); ``weight`` are the packed codes."""

    def decode_transposed(self, outputs: int, columns: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """``Wᵀ [columns, outputs]`` in float32, differentiable in every floating-point tensor."""

    def shape_problem(self, outputs: int, columns: int) -> str | None:
        """Why a matrix of these sizes cannot be stored with these fields, or ``None``."""

    def content_problem(self, name: str, tensor: Tensor, outputs: int, columns: int) -> str | None:
        """What is wrong with the contents of a stored tensor of the right shape and dtype, or ``None``."""


UNCHECKED_CONTENTS = ("weight", "group_zero", COLUMN_SCALES_ON_DISK)
"""Tensors of which any contents are valid."""

FORMATS: dict[str, type[FormatSpec]] = {spec.format: spec for spec in (ScalarSpec, AdditiveSpec, TrellisSpec)}

# Fields whose name on disk is another one than in Python.
NAMES_ON_DISK = {"column_scales": COLUMN_SCALES_ON_DISK}
NAMES_IN_PYTHON = {on_disk: name for name, on_disk in NAMES_ON_DISK.items()}


def spec_to_dict(spec: FormatSpec) -> dict[str, Any]:
    """JSON form of a spec, ``{"format": name, ...fields}``; a field that has its default is left out."""
    data: dict[str, Any] = {"format": spec.format}
    for name, default in _defaults(type(spec)):
        if (value := getattr(spec, name)) != default:
            data[NAMES_ON_DISK.get(name, name)] = list(value) if isinstance(value, tuple) else value
    return data


def spec_from_dict(data: Mapping[str, Any]) -> FormatSpec:
    """The inverse of `spec_to_dict`. Raises `CheckpointError` for a format, field or value that this version lacks."""
    name = data.get("format")
    if not isinstance(name, str) or name not in FORMATS:
        raise CheckpointError(
            f"unknown weight format {short_repr(name)}; this version reads {', '.join(FORMATS)}; update vqcompress"
        )
    values = {NAMES_IN_PYTHON.get(key, key): value for key, value in data.items() if key != "format"}
    known = {field for field, _ in _defaults(FORMATS[name])}
    if unknown := (data.keys() & NAMES_ON_DISK.keys()) | (values.keys() - known):
        raise CheckpointError(
            f"a {name} weight is described with fields this version does not know: {short_repr(sorted(unknown))}"
        )
    if missing := [field for field, default in _defaults(FORMATS[name]) if default is MISSING and field not in values]:
        raise CheckpointError(f"the description of a {name} weight lacks {', '.join(missing)}")
    try:
        if any(isinstance(value, list | dict) for value in values.values()):
            return FORMATS[name](**values)
        return _made(name, tuple(values), *values.values())
    except ValueError as error:
        raise CheckpointError(f"a {name} weight is described with values this version does not know: {error}") from None


@lru_cache(maxsize=8192, typed=True)  # typed, or true would stand for one
def _made(name: str, fields_given: tuple[str, ...], *values: Any) -> FormatSpec:
    """The spec with these fields. A component's specs are asked for more than once in a load."""
    return FORMATS[name](**dict(zip(fields_given, values, strict=True)))


@lru_cache(maxsize=64)
def _defaults(kind: type[Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((field.name, field.default) for field in fields(kind))


__all__ = [
    "FORMATS",
    "UNCHECKED_CONTENTS",
    "AdditiveSpec",
    "FormatSpec",
    "ScalarSpec",
    "TensorShapes",
    "TrellisSpec",
    "check",
    "spec_from_dict",
    "spec_to_dict",
]
