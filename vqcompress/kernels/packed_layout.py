"""A packed weight's geometry as one string, which a torch operator accepts as an argument."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from vqcompress.formats import FormatSpec, spec_from_dict, spec_to_dict


class ConvGeometry(NamedTuple):
    """Stride, padding and dilation of a convolution, each ``(vertical, horizontal)``."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class PackedLayout:
    """``spec`` and dense ``shape`` of a weight, and the ``names`` of its tensors in argument order."""

    spec: FormatSpec
    shape: tuple[int, ...]
    names: tuple[str, ...]


@lru_cache(maxsize=4096)
def layout_to_text(layout: PackedLayout) -> str:
    """The layout as JSON. Equal layouts give equal text."""
    return json.dumps({"spec": spec_to_dict(layout.spec), "shape": layout.shape, "names": layout.names})


@lru_cache(maxsize=4096)
def layout_from_text(text: str) -> PackedLayout:
    """The inverse of `layout_to_text`."""
    data = json.loads(text)
    return PackedLayout(spec_from_dict(data["spec"]), tuple(data["shape"]), tuple(data["names"]))
