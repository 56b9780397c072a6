"""Letters of a poster's label, as bitmaps of five by seven cells."""

from __future__ import annotations

import numpy as np

_ROWS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "X": "10001 10001 01010 00100 01010 10001 10001",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
}
LETTERS = tuple(_ROWS)
CELLS = (5, 7)
"""Width and height of a letter in cells."""

BITMAPS = {
    letter: np.array([[int(cell) for cell in row] for row in rows.split()], bool) for letter, rows in _ROWS.items()
}
"""bool [7, 5] of each letter."""
