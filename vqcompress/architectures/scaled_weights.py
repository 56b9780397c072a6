"""Weights of single files that are stored with scales: 8-bit floats and, beside them, what to multiply them by.

``<layer>.scale_weight`` (or ``<layer>.weight_scale``) belongs to ``<layer>.weight``. The scale of a layer's input,
which only 8-bit products need, and the marks that say that a file is such a file are dropped. Weights of any other
quantization are refused: their numbers mean nothing without a decoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import torch
from torch import Tensor

from vqcompress.architectures.file_header import FileHeader
from vqcompress.errors import ArchitectureError

WEIGHT_SCALES = (".scale_weight", ".weight_scale")
INPUT_SCALES = (".scale_input", ".input_scale")
FORMAT_MARK = ".comfy_quant"
FILE_MARK = "scaled_fp8"
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FORMATS = ("float8_e4m3fn", "float8_e5m2")
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def is_scale_or_mark(name: str) -> bool:
    """Whether ``name`` is a scale or a mark, not a weight."""
    return name.endswith((*WEIGHT_SCALES, *INPUT_SCALES, FORMAT_MARK)) or name.rpartition(".")[2] == FILE_MARK


def plain_weights(header: FileHeader, names: Iterable[str]) -> dict[str, Tensor]:
    """The weights among ``names`` with their scales applied, in float32, and the others as they are stored.

    Raises `ArchitectureError` for weights in a format that is not read, and for scales that belong to no weight.
    """
    names = list(names)
    _refuse_other_formats(header, names)
    stored = header.tensors(name for name in names if not name.endswith((*INPUT_SCALES, FORMAT_MARK)))
    weights = {name: tensor for name, tensor in stored.items() if not is_scale_or_mark(name)}
    for name in names:
        if name.endswith(WEIGHT_SCALES):
            weight = f"{name.rpartition('.')[0]}.weight"
            weights[weight] = _scaled(header, weight, weights.get(weight), stored[name])
    return weights


def _scaled(header: FileHeader, name: str, weight: Tensor | None, scale: Tensor) -> Tensor:
    """``scale`` is one number, or one for each output channel."""
    if weight is None or weight.dtype not in FLOAT8 or scale.numel() not in (1, len(weight)):
        there = "is missing" if weight is None else f"is {weight.dtype} of shape {tuple(weight.shape)}"
        raise ArchitectureError(
            f"{header.path} has a scale of shape {tuple(scale.shape)} for {name}, which {there}: only 8-bit floats "
            "with one scale, or one for each output, are read; give the file in 16 bits"
        )
    return weight.float() * scale.float().reshape(-1, *[1] * (weight.ndim - 1))


def _refuse_other_formats(header: FileHeader, names: list[str]) -> None:
    for name in names:
        entry = header.entries[name]
        if name.endswith(FORMAT_MARK):
            problem = _other_format(header, name)
        elif is_scale_or_mark(name) or entry.dtype in FLOATS or len(entry.shape) < 2:
            problem = None
        else:
            problem = f"{entry.dtype} numbers"
        if problem:
            raise ArchitectureError(
                f"{header.path} is quantized already ({name}: {problem}), in a format that is not read; give the file "
                "in 16 bits, or in 8-bit floats"
            )


def _other_format(header: FileHeader, name: str) -> str | None:
    try:
        found = json.loads(bytes(header.tensors([name])[name].tolist()))["format"]
    except (ValueError, KeyError, TypeError):
        return "an unreadable format"
    return None if found in FORMATS else str(found)
