"""How each curve is drawn: one colour, marker and line for each method and bit allocation, the same in every plot.

The colours are Okabe and Ito's ("Color universal design", 2008), which people with colour-vision deficiencies can tell
apart. Markers and lines differ as well: vector codes are filled and solid, scalar codes hollow and dashed. The page
sets each colour as a CSS variable, with a lighter one on dark backgrounds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from vqcompress.methods import METHODS
from vqcompress.peers import ALLOCATED, PEERS
from vqcompress.reports.variant import Family, other_scheme

INK = "#010203"
FAINT = "#040506"
GRID = "#070809"
STANDINS = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--rule)"}
"""Colours that matplotlib draws with, and what they become in the page's SVG."""


@dataclass(frozen=True)
class Style:
    """How a curve is drawn; ``color`` on white, ``dark`` on a dark page, ``marker`` as matplotlib names it."""

    color: str
    dark: str
    marker: str
    dashed: bool


Palette = tuple[tuple[Style, Style], ...]
"""For each method of a family in turn: the style with its default budget, and with the other one."""

VECTOR: Palette = (
    (Style("#0072b2", "#56b4e9", "o", False), Style("#4f6d94", "#a9c8ea", "h", False)),
    (Style("#007d5c", "#2bc39a", "D", False), Style("#4f8a73", "#97dcc1", "p", False)),
    (Style("#a8467f", "#e39bc4", "^", False), Style("#74335a", "#f2c4dc", "*", False)),
    (Style("#5a4fb0", "#a9a1ee", "<", False), Style("#8a83bf", "#d0ccf6", ">", False)),
)
SCALAR: Palette = (
    (Style("#d55e00", "#ff8a3d", "s", True), Style("#8c3200", "#ffb38c", "P", True)),
    (Style("#a87400", "#f0b429", "v", True), Style("#6e4d00", "#ffd980", "X", True)),
    (Style("#b02a2a", "#f08a8a", "d", True), Style("#7d1f1f", "#f6b8b8", "H", True)),
)
PEER_STYLES: tuple[Style, ...] = (
    Style("#555b61", "#c3c9cf", "s", True),
    Style("#8a5a2b", "#d9a877", "D", True),
    Style("#2f6f73", "#7fc6ca", "v", True),
    Style("#7a4a86", "#cfa3da", "^", True),
    Style("#6b6f1d", "#c8cc6e", "o", True),
    Style("#3d5a99", "#a4bbef", "P", True),
    Style("#96444a", "#eba0a6", "X", True),
    Style("#4d7a3a", "#a5d491", "d", True),
    Style("#80713c", "#dccb8d", "p", True),
)
"""For other packages' formats in the order of the table of peers: hollow and dashed like scalar codes."""
SHIFT = 4  # styles between a format's and that which lends its marker to the allocated ones
PALETTES: dict[Family, Palette] = {"vector": VECTOR, "scalar": SCALAR}


MARKERS: dict[str, str] = {
    "o": '<circle r="5"/>',
    "s": '<rect x="-4.5" y="-4.5" width="9" height="9"/>',
    "D": '<path d="M0-6 6 0 0 6-6 0Z"/>',
    "d": '<path d="M0-7 4 0 0 7-4 0Z"/>',
    "^": '<path d="M0-6 6 5H-6Z"/>',
    "v": '<path d="M0 6 6-5H-6Z"/>',
    "<": '<path d="M-6 0 5-6V6Z"/>',
    ">": '<path d="M6 0-5-6V6Z"/>',
    "h": '<path d="M0-6 5.2-3V3L0 6-5.2 3V-3Z"/>',
    "H": '<path d="M-6 0-3-5.2H3L6 0 3 5.2H-3Z"/>',
    "p": '<path d="M0-6 5.7-1.9 3.5 4.9H-3.5L-5.7-1.9Z"/>',
    "*": '<path d="M0-7 1.6-2.2H6.7L2.6.8 4.1 5.7 0 2.7-4.1 5.7-2.6.8-6.7-2.2H-1.6Z"/>',
    "P": '<path d="M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z"/>',
    "X": '<path d="M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z" transform="rotate(45)"/>',
}
"""The same markers as SVG within 8 units of the origin, for the page's tables."""


def _styles() -> dict[str, Style]:
    """Curve -> style, defaults first. A family with more methods than its palette starts over."""
    place: Counter[Family] = Counter()
    defaults, others = {}, {}
    for name, method in METHODS.items():
        palette = PALETTES[method.family]
        default, other = palette[place[method.family] % len(palette)]
        place[method.family] += 1
        defaults[name] = default
        others[f"{name}-{other_scheme(name)}"] = other
    curves = dict.fromkeys(peer.curve for peer in PEERS.values())
    peers = {curve: PEER_STYLES[place % len(PEER_STYLES)] for place, curve in enumerate(curves)}
    markers = [style.marker for style in PEER_STYLES]
    allocated = {  # in the format's colours, with a marker of another
        f"{curve}-mixed": replace(peers[curve], marker=markers[(place + SHIFT) % len(markers)])
        for place, curve in enumerate(curves)
        if curve in {peer.curve for peer in ALLOCATED.values()}
    }
    return {**defaults, **others, **peers, **allocated}


STYLES: dict[str, Style] = _styles()
"""Curve (see `Variant.curve`) -> style."""
