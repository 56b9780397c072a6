"""vqcompress: post-training vector quantization of diffusion models to about 3 bits a weight.

Importing this package is enough for diffusers and transformers to read compressed folders, whichever is imported
first. It does not import torch: names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from vqcompress.errors import (
    ArchitectureError,
    CalibrationError,
    CheckpointError,
    RecipeError,
    UnsupportedError,
    VQCompressError,
)
from vqcompress.integrations import register

if TYPE_CHECKING:
    from vqcompress.checkpoint import bundle, dequantize, inspect, load, verify
    from vqcompress.compression import quantize
    from vqcompress.environment import env
    from vqcompress.generation import generate
    from vqcompress.layers import set_decode_ahead, set_dense_budget
    from vqcompress.pushing import push
    from vqcompress.quantizers import quantize_weight
    from vqcompress.recipe import Recipe
    from vqcompress.reports import compare, report
    from vqcompress.tuning import finetune


def _installed_version() -> str:
    """As the package was installed; a checkout that is only on the path has none."""
    try:
        return version("vqcompress")
    except PackageNotFoundError:
        return "0+checkout"


__version__ = _installed_version()

_LAZY = {
    "Recipe": "vqcompress.recipe",
    "bundle": "vqcompress.checkpoint",
    "compare": "vqcompress.reports",
    "dequantize": "vqcompress.checkpoint",
    "env": "vqcompress.environment",
    "finetune": "vqcompress.tuning",
    "generate": "vqcompress.generation",
    "inspect": "vqcompress.checkpoint",
    "load": "vqcompress.checkpoint",
    "push": "vqcompress.pushing",
    "quantize": "vqcompress.compression",
    "quantize_weight": "vqcompress.quantizers",
    "report": "vqcompress.reports",
    "set_decode_ahead": "vqcompress.layers",
    "set_dense_budget": "vqcompress.layers",
    "verify": "vqcompress.checkpoint",
}

__all__ = [
    "ArchitectureError",
    "CalibrationError",
    "CheckpointError",
    "Recipe",
    "RecipeError",
    "UnsupportedError",
    "VQCompressError",
    "bundle",
    "compare",
    "dequantize",
    "env",
    "finetune",
    "generate",
    "inspect",
    "load",
    "push",
    "quantize",
    "quantize_weight",
    "report",
    "set_decode_ahead",
    "set_dense_budget",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'vqcompress' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


register()
