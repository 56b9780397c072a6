"""The sizes that a vector code can have, checked with one clear error."""

from __future__ import annotations

from vqcompress.errors import RecipeError

DIMENSIONS = (4, 8, 16)
CODE_BITS = range(4, 13)
MAX_CODEBOOKS = 32
COMPONENT_CODEBOOK = "codebooks"  # what the codebooks that a component shares are called in its layers' specs


def check_geometry(
    method: str, dimension: int, code_bits: int | None, codebooks: int | None, row_scales: bool | str
) -> None:
    """Raises `RecipeError` unless these are sizes that the additive format stores and the searches take."""
    check_setting(method, "dimension", dimension, dimension in DIMENSIONS, "4, 8 or 16")
    check_setting(method, "code_bits", code_bits, code_bits is None or code_bits in CODE_BITS, "4 to 12, or null")
    fine = codebooks is None or codebooks in range(1, MAX_CODEBOOKS + 1)
    check_setting(method, "codebooks", codebooks, fine, f"1 to {MAX_CODEBOOKS}, or null")
    check_setting(method, "row_scales", row_scales, row_scales in (True, False, "auto"), "true, false or 'auto'")


def check_setting(method: str, name: str, value: object, fine: bool, allowed: str) -> None:
    """Raises `RecipeError` that names the setting and what it takes, unless ``fine``."""
    if not fine:
        raise RecipeError(f"{method} setting {name}={value!r} is out of range; it takes {allowed}")
