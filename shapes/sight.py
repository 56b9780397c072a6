"""What is in a picture: its background and its objects, found by thresholds and templates, nothing learned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from vqcompress.shapes.render import SIZE, coverage
from vqcompress.shapes.scenes import BACKGROUNDS, COLORS, RADII, SHAPES

CONTRAST = 48.0  # RGB distance from the background at which a pixel belongs to an object
SPECK = 9.0  # pixels; a smaller blob is no object
NEAR_COLOR = 80.0  # RGB distance within which a colour has a name
POOR_FIT = 0.16  # squared misfit, relative to the energy, above which a shape has no name
UNKNOWN = "unknown"
BLURS = (0.0, 0.6)
SCALES = (0.94, 1.0, 1.06)


@dataclass(frozen=True)
class Seen:
    """One object found: names (or `unknown`), centre and radius in pixels, misfit of the best template."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    misfit: float


def look(image: np.ndarray) -> tuple[str, list[Seen]]:
    """uint8 [32, 32, 3] -> name of the background, objects."""
    pixels = image.astype(np.float32)
    frame = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground = np.median(frame, axis=0)
    contrast = np.linalg.norm(pixels - ground, axis=-1)
    labels, count = ndimage.label(contrast > CONTRAST)
    found = [_describe(pixels - ground, ground, labels, index) for index in range(1, count + 1)]
    return nearest_name(ground, BACKGROUNDS), [seen for seen in found if seen]


def nearest_name(color: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """Name of the palette colour next to an RGB value in 0..255, or `unknown` if none is near."""
    distances = {name: float(np.linalg.norm(color - np.array(value))) for name, value in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] < NEAR_COLOR else UNKNOWN


def _describe(offset: np.ndarray, ground: np.ndarray, labels: np.ndarray, index: int) -> Seen | None:
    """Colour from the pixels furthest from the background, shape from how much of each pixel has that colour."""
    own = labels == index
    strength = np.linalg.norm(offset, axis=-1)
    core = own & (strength >= np.quantile(strength[own], 0.6))
    color = np.median(offset[core], axis=0)
    alpha = np.clip(offset @ color / float(color @ color), 0.0, 1.0)
    alpha = alpha * (ndimage.binary_dilation(own) & ((labels == 0) | own))
    if alpha.sum() < SPECK:
        return None
    misfit, shape, x, y, radius = min(_fits(alpha))
    size = min(RADII, key=lambda name: abs(RADII[name] - radius))
    name = shape if misfit < POOR_FIT else UNKNOWN
    return Seen(name, nearest_name(color + ground, COLORS), size, x, y, radius, misfit)


def _fits(alpha: np.ndarray):
    """(misfit, shape, x, y, radius) of every template with alpha's area and centroid, slightly scaled and blurred."""
    area = float(alpha.sum())
    rows, columns = np.indices(alpha.shape) + 0.5
    cx, cy = float((alpha * columns).sum() / area), float((alpha * rows).sum() / area)
    for shape in SHAPES:
        unit_area, drop = _unit(shape)
        for scale in SCALES:
            radius = scale * (area / unit_area) ** 0.5
            x, y = cx, cy - drop * radius
            template = coverage(shape, x, y, radius)
            for blur in BLURS:
                yield _misfit(alpha, template, blur), shape, x, y, radius


def _misfit(alpha: np.ndarray, template: np.ndarray, blur: float) -> float:
    if blur:
        template = ndimage.gaussian_filter(template, blur)
    return float(np.square(alpha - template).sum() / (np.square(alpha).sum() + np.square(template).sum()))


@cache
def _unit(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1, and how far its centroid lies below its centre."""
    radius, centre = 12.0, SIZE / 2
    alpha = coverage(shape, centre, centre, radius)
    rows = np.arange(SIZE)[:, None] + 0.5
    drop = float((alpha * rows).sum() / alpha.sum()) - centre
    return float(alpha.sum()) / radius**2, drop / radius
