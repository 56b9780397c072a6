"""How the integrations look at what a class method of a library is asked to open, before it does."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from types import ModuleType
from typing import Any

from vqcompress.errors import UnsupportedError

SOURCE = "pretrained_model_name_or_path"

Opening = Callable[[Any, type, tuple[Any, ...], dict[str, Any]], Any]
"""``(upstream, class, source, options)`` -> what ``upstream(class, *source, **options)`` opens."""


def check_first(home: ModuleType, name: str, method: str, opening: Opening) -> None:
    """Make class method ``method`` of ``home``'s class ``name`` go through ``opening``. Calling it again changes
    nothing.

    Raises `UnsupportedError` if this version of the library has no such method.
    """
    kind: Any = getattr(home, name, None)
    upstream = vars(kind).get(method) if kind is not None else None
    if not isinstance(upstream, classmethod):
        raise UnsupportedError(
            f"{home.__name__}.{name}.{method} is gone, so vqcompress cannot look at what it opens; install a version "
            "in the range that pyproject.toml declares"
        )
    if not getattr(upstream.__func__, "looks_first", False):
        setattr(kind, method, classmethod(_with(opening, upstream.__func__)))


def _with(opening: Opening, upstream: Any) -> Any:
    @functools.wraps(upstream)
    def looking(cls: type, *source: Any, **options: Any) -> Any:
        if SOURCE in options:
            options[SOURCE] = _known(options[SOURCE])
        return opening(upstream, cls, (*map(_known, source[:1]), *source[1:]), options)

    looking.__dict__["looks_first"] = True
    return looking


def _known(named: Any) -> Any:
    """``named`` as the libraries know it: they keep it in a config, and can write texts and `Path` but no other path,
    such as what `vqcompress.quantize` returns."""
    return fspath(named) if isinstance(named, PathLike) and not isinstance(named, Path) else named


def local_folder(source: tuple[Any, ...], options: dict[str, Any]) -> Path | None:
    """The folder that the arguments of ``from_pretrained`` name, or ``None``; they can also name one on the Hub."""
    named = source[0] if source else options.get(SOURCE)
    if not isinstance(named, str | PathLike):
        return None
    folder = Path(fspath(named)) / (options.get("subfolder") or "")
    return folder if folder.is_dir() else None


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable garbage collection: loading creates thousands of small objects, all of which stay alive."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
