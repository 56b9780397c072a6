"""Detect background, objects and label of a poster by colours and template matching; nothing is learned.

Objects are found by hue, which outline, texture and light leave as it is. Each one is compared with every template at
every place, on the pixels that no other object may cover.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import fft, ndimage

from vqcompress.shapes.detector import UNKNOWN, nearest_name
from vqcompress.shapes.posters.glyphs import LETTERS
from vqcompress.shapes.posters.render import is_shaded, letter_coverage
from vqcompress.shapes.posters.scenes import HEIGHT, RADII, SIZE, SOLID, TEXTURES
from vqcompress.shapes.render import INSIDE
from vqcompress.shapes.scenes import BACKGROUNDS, COLORS, SHAPES

MIN_CHROMA = 22.0  # of 255, between a pixel's strongest and weakest channel
MIN_SATURATION = 0.28
MIN_AREA = 24.0  # pixels; a smaller region is no object
CLOSING = 1.2  # pixels by which a colour's scores are blurred before each pixel takes the best
RADIUS_FACTORS = (0.92, 1.0, 1.06)
MAX_MISFIT = 0.22  # squared misfit relative to the energy, above which a shape is unknown
MIN_DEPTH = 0.08  # standard deviation of lightness relative to its mean, below which an object is plain
MIN_CORRELATION = 0.55  # of lightness with a texture, below which an object is plain
SHIFTS = np.arange(-1.5, 1.6, 0.5)  # pixels, tried around an object's fitted centre
INNER = 2  # pixels of an object's edge that are left out when its texture is read
MIN_CONTRAST = 40.0  # of 255, of a label's ink with its background
MIN_INK = 0.6  # correlation with the best letter, below which there is none
LABEL = slice(int(HEIGHT), SIZE), slice(38, SIZE)  # rows and columns


@dataclass(frozen=True)
class Detection:
    """One object: names (or `unknown`), centre and radius in pixels.

    ``on_top``: the share of its overlap with others in which it is the one that is seen; 1 where it overlaps nothing.
    """

    shape: str
    color: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    on_top: float = 1.0


@dataclass(frozen=True)
class PosterContent:
    """What a poster shows."""

    background: str
    objects: list[Detection]
    label: str


def detect(image: np.ndarray) -> PosterContent:
    """Contents of an image uint8 [64, 64, 3]."""
    pixels = image.astype(np.float32)
    frame = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    regions = _regions(pixels)
    objects = np.any([own for _, own in regions], axis=0) if regions else np.zeros((SIZE, SIZE), bool)
    found = [_describe(pixels, color, own, objects & ~own) for color, own in regions]
    found = _with_order(found, [own for _, own in regions])
    return PosterContent(nearest_name(np.median(frame, axis=0), BACKGROUNDS), found, _read_label(pixels))


def _regions(pixels: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Colour and mask of every connected region of one hue."""
    strongest, weakest = pixels.max(-1), pixels.min(-1)
    chroma = strongest - weakest
    colored = (chroma > MIN_CHROMA) & (chroma > MIN_SATURATION * strongest)
    direction = pixels / (np.linalg.norm(pixels, axis=-1, keepdims=True) + 1e-6)
    scores = direction @ _directions().T  # cosines
    votes = np.eye(len(COLORS), dtype=np.float32)[scores.argmax(-1)] * (colored * strongest)[..., None]
    names = ndimage.gaussian_filter(votes, (CLOSING, CLOSING, 0)).argmax(-1)
    regions = []
    for index, color in enumerate(COLORS):
        labels, count = ndimage.label(colored & (names == index), np.ones((3, 3)))
        masks = [labels == each for each in range(1, count + 1)]
        regions += [(color, mask) for mask in masks if mask.sum() >= MIN_AREA]
    return regions


@cache
def _directions() -> np.ndarray:
    """Unit vectors of the palette [colours, 3]."""
    palette = np.array(list(COLORS.values()), np.float32)
    return palette / np.linalg.norm(palette, axis=1, keepdims=True)


def _describe(pixels: np.ndarray, color: str, own: np.ndarray, others: np.ndarray) -> Detection:
    shape, x, y, radius, misfit = _fit(own, ~others)
    template = _inside(shape, x, y, radius)
    texture = _texture(pixels.max(-1), template & ~others, x, y) if shape in SOLID else TEXTURES[0]
    size = min(RADII, key=lambda name: abs(RADII[name] - radius))
    return Detection(shape if misfit < MAX_MISFIT else UNKNOWN, color, texture, size, x, y, radius)


def _with_order(found: list[Detection], masks: list[np.ndarray]) -> list[Detection]:
    """``found`` with `Detection.on_top`, from each object's mask."""
    nothing = np.zeros((SIZE, SIZE), bool)
    templates = [
        nothing if each.shape == UNKNOWN else _inside(each.shape, each.x, each.y, each.radius) for each in found
    ]
    common = np.sum([nothing, *templates], axis=0) > 1
    return [
        replace(each, on_top=_share(own, common & template))
        for each, own, template in zip(found, masks, templates, strict=True)
    ]


def _share(own: np.ndarray, area: np.ndarray) -> float:
    return float((own & area).sum() / area.sum()) if area.any() else 1.0


def _fit(own: np.ndarray, visible: np.ndarray) -> tuple[str, float, float, float, float]:
    """(shape, x, y, radius, misfit) of the template nearest to the mask ``own`` on the pixels ``visible``.

    The misfit of all places is one correlation: the pixels of a template that are visible and not own, and those own
    and not in the template, of the sum of both.
    """
    shapes, radii, spectra = _templates()
    planes = fft.rfft2(np.stack([visible, own]).astype(np.float32), (2 * SIZE, 2 * SIZE), axes=(1, 2))
    overlap = fft.irfft2(planes[None] * spectra.conj()[:, None], (2 * SIZE, 2 * SIZE), axes=(2, 3))
    covered, common = overlap[:, 0], overlap[:, 1]
    misfit = (covered + own.sum() - 2 * common) / (covered + own.sum())
    index, row, column = np.unravel_index(misfit.argmin(), misfit.shape)
    y, x = (int(place) - 2 * SIZE if place > SIZE else int(place) for place in (row, column))
    return shapes[index], x + SIZE / 2, y + SIZE / 2, radii[index], float(misfit[index, row, column])


@cache
def _templates() -> tuple[list[str], list[float], np.ndarray]:
    """Shape, radius and spectrum [templates, 128, 65] of each template, drawn at the image's centre."""
    kinds = [(shape, factor * radius) for shape in SHAPES for radius in RADII.values() for factor in RADIUS_FACTORS]
    masks = np.stack([_inside(shape, SIZE / 2, SIZE / 2, radius) for shape, radius in kinds])
    spectra = fft.rfft2(masks.astype(np.float32), (2 * SIZE, 2 * SIZE), axes=(1, 2))
    return [shape for shape, _ in kinds], [radius for _, radius in kinds], spectra


def _inside(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """bool [64, 64]: pixels whose centre lies in the shape."""
    u, v = _offsets(x, y)
    return INSIDE[shape](u / radius, v / radius)


def _offsets(x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    place = np.arange(SIZE, dtype=np.float32) + 0.5
    return (place - x)[None, :], (place - y)[:, None]


def _texture(lightness: np.ndarray, seen: np.ndarray, x: float, y: float) -> str:
    """Name of the texture whose pattern explains most of the lightness, or the first where none explains much."""
    inner = ndimage.binary_erosion(seen, iterations=INNER)
    if inner.sum() < MIN_AREA:
        return TEXTURES[0]
    values = _without_slope(lightness, inner)
    if values.std() < MIN_DEPTH * lightness[inner].mean():
        return TEXTURES[0]
    best = max((_pattern_correlation(values, inner, name, x, y), name) for name in TEXTURES[1:])
    return best[1] if best[0] > MIN_CORRELATION else TEXTURES[0]


def _without_slope(lightness: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Lightness of the pixels ``inner`` without its mean and linear course, which light gives every object."""
    rows, columns = np.nonzero(inner)
    plane = np.stack([np.ones(len(rows)), rows, columns], 1)
    values = lightness[inner].astype(np.float64)
    return values - plane @ np.linalg.lstsq(plane, values, rcond=None)[0]


def _pattern_correlation(values: np.ndarray, inner: np.ndarray, texture: str, x: float, y: float) -> float:
    """Best correlation of ``values`` with the texture, dark where it is shaded, over small shifts of its centre."""
    best = 0.0
    for right in SHIFTS:
        for down in SHIFTS:
            dark = is_shaded(texture, *_offsets(x + right, y + down)).astype(np.float64)
            pattern = -_without_slope(dark, inner)
            scale = np.sqrt((pattern @ pattern) * (values @ values))
            best = max(best, float(pattern @ values) / scale if scale > 0 else 0.0)
    return best


def _read_label(pixels: np.ndarray) -> str:
    """The two letters of the label, or as many of them as there are."""
    strip = pixels.mean(-1)[LABEL]
    change = strip - np.median(strip)
    ink = change.flat[np.abs(change).argmax()]
    return "".join(_letter(change * np.sign(ink), index) for index in range(2)) if abs(ink) > MIN_CONTRAST else ""


def _letter(change: np.ndarray, index: int) -> str:
    best = max((_letter_correlation(change, letter, index), letter) for letter in LETTERS)
    return best[1] if best[0] > MIN_INK else ""


def _letter_correlation(change: np.ndarray, letter: str, index: int) -> float:
    """Best correlation with a letter within a pixel of its place, in a window around it."""
    template = letter_coverage(letter, index)[LABEL]
    columns = np.nonzero(template.any(0))[0]
    window = slice(None), slice(max(columns.min() - 1, 0), columns.max() + 2)
    best = 0.0
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            moved = ndimage.shift(template, (down, right), order=0)[window]
            seen = change[window]
            scale = np.sqrt(np.square(moved).sum() * np.square(seen).sum())
            best = max(best, float((moved * seen).sum()) / scale if scale > 0 else 0.0)
    return best
