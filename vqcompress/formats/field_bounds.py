"""Bounds of a spec's fields: a spec that exists has fields of the right types, in range.

A spec is read from a ``config.json`` that a stranger may have written. All arithmetic on its fields is Python's, which
does not overflow, and everything is checked before a tensor is allocated or read.
"""

from __future__ import annotations

import math
import re
from reprlib import repr as short_repr

LARGEST_COUNT = 1 << 40
"""Of weights, bytes or inputs: more than any file that we could read, and 2^23 times as much still fits in an int64."""

NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


def check_integer(name: str, value: object, least: int, most: int = LARGEST_COUNT) -> None:
    """Raise `ValueError` unless ``value`` is an integer, and no bool, from ``least`` to ``most``."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {short_repr(value)}, not an integer from {least} to {most}")


def check_number(name: str, value: object, least: float, most: float) -> None:
    """Raise `ValueError` unless ``value`` is a finite number from ``least`` to ``most``."""
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:  # type: ignore[arg-type,operator]
        raise ValueError(f"{name} is {short_repr(value)}, not a number from {least} to {most}")


def check_flag(name: str, value: object) -> None:
    """Raise `ValueError` unless ``value`` is true or false."""
    if type(value) is not bool:
        raise ValueError(f"{name} is {short_repr(value)}, neither true nor false")


def check_codebook(value: object) -> None:
    """Raise `ValueError` unless ``value`` can name a shared codebook, or is ``None``."""
    if value is not None and not is_name(value):
        raise ValueError(f"codebook is {short_repr(value)}, not a name of letters, digits, - and _")


def is_name(value: object) -> bool:
    """Whether ``value`` can name a shared codebook."""
    return isinstance(value, str) and NAME.fullmatch(value) is not None
