"""The upstream names that we hang on, and a sentence for the day one of them moves."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from vqcompress.errors import UnsupportedError


def table(module: ModuleType, name: str) -> dict[str, Any]:
    """The registry ``name`` of ``module``. Raises `UnsupportedError` when it is not there any more."""
    registry = getattr(module, name, None)
    if not isinstance(registry, dict):
        raise UnsupportedError(
            f"{module.__name__}.{name} is no table any more, so vqcompress cannot register with {module.__name__.split('.')[0]}; "
            "install a version in the range that pyproject.toml declares"
        )
    return registry
