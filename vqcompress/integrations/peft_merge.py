"""Refuses merging LoRA adapters into packed weights, before PEFT adds a dense delta to codes."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from vqcompress.errors import UnsupportedError
from vqcompress.layers.guards import MERGE_REFUSED
from vqcompress.layers.packed import PackedLayer

GUARDED = ("Linear", "_ConvNd")


def attach(layer: ModuleType) -> None:
    """Wrap ``merge`` of PEFT's LoRA layers for Linear and convolutions."""
    for name in GUARDED:
        kind: Any = getattr(layer, name, None)
        if not hasattr(kind, "merge"):
            raise UnsupportedError(
                f"{layer.__name__}.{name}.merge is gone, so vqcompress cannot keep adapters out of packed weights; "
                "install a version in the range that pyproject.toml declares"
            )
        if not getattr(kind.merge, "guards_packed", False):
            kind.merge = _guarded(kind.merge)


def _guarded(merge: Any) -> Any:
    @functools.wraps(merge)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.get_base_layer(), PackedLayer):
            raise UnsupportedError(MERGE_REFUSED)
        return merge(self, *args, **kwargs)

    guarded.__dict__["guards_packed"] = True
    return guarded
