"""Render a poster: objects from back to front on a fine grid, averaged down, so edges are anti-aliased."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vqcompress.shapes.posters.glyphs import BITMAPS, CELLS
from vqcompress.shapes.posters.scenes import SIZE, Item, Poster
from vqcompress.shapes.render import INSIDE
from vqcompress.shapes.scenes import BACKGROUNDS, COLORS

FINE = 3  # fine-grid samples per pixel and axis
OUTLINE = 4  # fine-grid samples, 1.3 pixels
OUTLINE_SHADE, TEXTURE_SHADE = 0.25, 0.5  # of the object's colour
LIGHT = 0.18  # how much brighter than its colour an object is at its upper left, and how much darker at its lower right
BACKGROUND_LIGHT = 12.0  # of 255, from the middle of the image to its upper left corner
PERIOD = {"striped": 7.0, "checkered": 8.0, "dotted": 6.0}  # pixels, of a texture
DOT = 1.7  # radius in pixels
LETTER_SCALE = 1.4  # pixels per cell
LABEL_RIGHT, LABEL_TOP, LETTER_GAP = 62.0, 53.0, 2.0  # pixels
INK = {"white": 30.0, "gray": 30.0, "black": 235.0}  # of the label, on each background


def render(poster: Poster) -> np.ndarray:
    """Image of ``poster``: uint8 [64, 64, 3]."""
    place = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1
    slope = -(place[:, None] + place[None, :]) / 2
    image = np.asarray(BACKGROUNDS[poster.background], np.float32) + (BACKGROUND_LIGHT * slope)[..., None]
    for item in reversed(poster.items):
        _draw(image, item)
    for index, letter in enumerate(poster.label):
        alpha = letter_coverage(letter, index)[..., None]
        image += alpha * (INK[poster.background] - image)
    return np.rint(image.clip(0, 255)).astype(np.uint8)


def letter_coverage(letter: str, index: int) -> np.ndarray:
    """Share of each pixel that a letter of the label covers: float32 [64, 64]; ``index`` 0 is the left letter."""
    width = CELLS[0] * LETTER_SCALE
    left = LABEL_RIGHT - (2 - index) * width - (1 - index) * LETTER_GAP
    fine = (np.arange(SIZE * FINE, dtype=np.float32) + 0.5) / FINE
    columns = np.floor((fine - left) / LETTER_SCALE).astype(int)
    rows = np.floor((fine - LABEL_TOP) / LETTER_SCALE).astype(int)
    inside = ((rows >= 0) & (rows < CELLS[1]))[:, None] & ((columns >= 0) & (columns < CELLS[0]))[None, :]
    bitmap = BITMAPS[letter][rows.clip(0, CELLS[1] - 1)[:, None], columns.clip(0, CELLS[0] - 1)[None, :]]
    return _averaged((inside & bitmap).astype(np.float32))


def is_shaded(texture: str, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """bool, broadcast: whether a texture is dark at offsets in pixels from the object's centre."""
    if texture == "plain":
        return np.zeros(np.broadcast_shapes(dx.shape, dy.shape), bool)
    period = PERIOD[texture]
    if texture == "striped":
        return np.floor(2 * dy / period + 0.5 + 0 * dx) % 2 == 0
    if texture == "checkered":
        return (np.floor(2 * dx / period) + np.floor(2 * dy / period)) % 2 == 0
    return ((dx + period / 2) % period - period / 2) ** 2 + ((dy + period / 2) % period - period / 2) ** 2 <= DOT**2


def _draw(image: np.ndarray, item: Item) -> None:
    """Draw one object over ``image`` float32 [64, 64, 3]."""
    low_x, low_y = int(item.x - item.radius) - 1, int(item.y - item.radius) - 1
    span = int(2 * item.radius) + 4
    fine = (np.arange(span * FINE, dtype=np.float32) + 0.5) / FINE
    dx, dy = (fine + low_x - item.x)[None, :], (fine + low_y - item.y)[:, None]
    u, v = dx / item.radius, dy / item.radius
    inside = INSIDE[item.shape](u, v)
    inner = ndimage.binary_erosion(inside, iterations=OUTLINE)
    shade = np.where(is_shaded(item.texture, dx, dy), TEXTURE_SHADE, 1.0) * (1 - LIGHT * (u + v))
    shade = np.where(inner, shade, OUTLINE_SHADE) * inside
    alpha, shade = _averaged(inside.astype(np.float32)), _averaged(shade.astype(np.float32))
    top, left = max(-low_y, 0), max(-low_x, 0)
    part = image[max(low_y, 0) : low_y + span, max(low_x, 0) : low_x + span]
    rows, columns = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
    part *= 1 - alpha[rows, columns, None]
    part += shade[rows, columns, None] * np.asarray(COLORS[item.color], np.float32)


def _averaged(fine: np.ndarray) -> np.ndarray:
    """[h * FINE, w * FINE] -> [h, w]."""
    h, w = fine.shape[0] // FINE, fine.shape[1] // FINE
    return fine.reshape(h, FINE, w, FINE).mean((1, 3), dtype=np.float32)
