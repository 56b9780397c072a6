"""Refuses operations on a whole component that packed weights do not support. The error names the alternative."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

from torch import nn

from vqcompress.errors import UnsupportedError

MERGE_REFUSED = (
    "an adapter cannot be fused into packed weights: they hold codes, not numbers to add to. Keep it active (it costs "
    "little), quantize a model that has a LoRA in its weights (`vqcompress bake-lora`), or make a dense pipeline first "
    "with `vqcompress dequantize DIR -o DIR2` and fuse there"
)
PROJECTIONS_REFUSED = (
    "query, key and value projections with packed weights cannot be fused into one matrix. Leave them as they are, or "
    "make a dense pipeline first with `vqcompress dequantize DIR -o DIR2` and fuse there"
)


def refuse_fusing(component: nn.Module) -> None:
    """Replace the component's fusing methods, if it has any, by ones that raise `UnsupportedError`.

    Upstream would concatenate or add to codes, and fail halfway with a message about shapes.
    """
    for name, message in (("fuse_lora", MERGE_REFUSED), ("fuse_qkv_projections", PROJECTIONS_REFUSED)):
        if hasattr(component, name):
            component.__dict__[name] = partial(_refuse, message)


def allow_fusing(component: nn.Module) -> None:
    """Undo `refuse_fusing` for a component that has been made dense."""
    for name in ("fuse_lora", "fuse_qkv_projections"):
        component.__dict__.pop(name, None)


def _refuse(message: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise UnsupportedError(message)
