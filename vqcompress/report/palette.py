"""One colour, marker and line for each method and way to deal out bits, the same in every plot.

Okabe & Ito's palette ("Color universal design", 2008), told apart by people with colour-vision deficiencies; families differ in
marker and line as well, so nothing depends on colour: vector codes are filled and solid, scalar codes hollow and dashed.
The page sets each colour as a CSS variable, with a lighter one on dark backgrounds.
"""

from __future__ import annotations

from dataclasses import dataclass

INK = "#010203"
FAINT = "#040506"
GRID = "#070809"
STANDINS = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--rule)"}
"""Colours that matplotlib draws with, and what they become in the page's SVG."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn; ``color`` on white, ``dark`` on a dark page."""

    color: str
    dark: str
    marker: str
    dashed: bool


STYLES: dict[str, Style] = {
    "trellis": Style("#0072b2", "#56b4e9", "o", False),
    "additive": Style("#007d5c", "#2bc39a", "D", False),
    "kmeans": Style("#a8467f", "#e39bc4", "^", False),
    "gptq": Style("#d55e00", "#ff8a3d", "s", True),
    "rtn": Style("#a87400", "#f0b429", "v", True),
    "trellis-uniform": Style("#4f6d94", "#a9c8ea", "h", False),
    "additive-uniform": Style("#4f8a73", "#97dcc1", "p", False),
    "kmeans-mixed": Style("#74335a", "#f2c4dc", "*", False),
    "gptq-mixed": Style("#8c3200", "#ffb38c", "P", True),
    "rtn-mixed": Style("#6e4d00", "#ffd980", "X", True),
}
