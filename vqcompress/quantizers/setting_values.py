"""What a method's settings may be: the annotated types of their fields, and bounds."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from vqcompress.errors import RecipeError

SHARE = "a share of the mean diagonal in (0, 1]"  # what a damping takes
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def check_types(method: str, settings: Any) -> None:
    """Raise `RecipeError` for the first field of the dataclass ``settings`` whose value is not of its annotated type.

    True and false are no numbers, and no text is one; a whole number is a number.
    """
    kind: type = type(settings)
    for name, (adapter, allowed) in _adapters(kind).items():
        value = getattr(settings, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError:
            raise RecipeError(f"{method} setting {name}={value!r} is not {allowed}") from None


def check_setting(method: str, name: str, value: object, fine: bool, allowed: str) -> None:
    """Raise `RecipeError` that names the setting and what it takes, unless ``fine``."""
    if not fine:
        raise RecipeError(f"{method} setting {name}={value!r} is out of range; it takes {allowed}")


@lru_cache
def _adapters(kind: type) -> dict[str, tuple[TypeAdapter[Any], str]]:
    """Field -> what checks its values, and what they are in words."""
    hints = get_type_hints(kind)
    return {field.name: (TypeAdapter(hints[field.name]), _in_words(hints[field.name])) for field in fields(kind)}


def _in_words(hint: Any) -> str:
    if hint in _KINDS:
        return _KINDS[hint]
    parts = [_in_words(part) if part in _KINDS or get_args(part) else repr(part) for part in get_args(hint)]
    return " or ".join(parts)
