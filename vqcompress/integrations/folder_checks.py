"""How the integrations look at a local folder before a library's ``from_pretrained`` opens it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from os import PathLike, fspath
from pathlib import Path
from types import ModuleType
from typing import Any

from vqcompress.errors import UnsupportedError

SOURCE = "pretrained_model_name_or_path"

Opening = Callable[[Any, type, tuple[Any, ...], dict[str, Any]], Any]
"""``(upstream, class, source, options)`` -> what ``upstream(class, *source, **options)`` opens."""


def check_first(home: ModuleType, name: str, opening: Opening) -> None:
    """Make ``from_pretrained`` of ``home``'s class ``name`` go through ``opening``. Calling it again changes nothing.

    Raises `UnsupportedError` if this version of the library has no such method.
    """
    kind: Any = getattr(home, name, None)
    method = vars(kind).get("from_pretrained") if kind is not None else None
    if not isinstance(method, classmethod):
        raise UnsupportedError(
            f"{home.__name__}.{name}.from_pretrained is gone, so vqcompress cannot look at folders before they are "
            "opened; install a version in the range that pyproject.toml declares"
        )
    if not getattr(method.__func__, "looks_first", False):
        kind.from_pretrained = classmethod(_with(opening, method.__func__))


def _with(opening: Opening, upstream: Any) -> Any:
    @functools.wraps(upstream)
    def from_pretrained(cls: type, *source: Any, **options: Any) -> Any:
        return opening(upstream, cls, source, options)

    from_pretrained.__dict__["looks_first"] = True
    return from_pretrained


def local_folder(source: tuple[Any, ...], options: dict[str, Any]) -> Path | None:
    """The folder that the arguments of ``from_pretrained`` name, or ``None``; they can also name one on the Hub."""
    named = source[0] if source else options.get(SOURCE)
    if not isinstance(named, str | PathLike):
        return None
    folder = Path(fspath(named)) / (options.get("subfolder") or "")
    return folder if folder.is_dir() else None
