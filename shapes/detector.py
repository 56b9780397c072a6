"""Detect the background and the objects in an image by thresholds and template matching; nothing is learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from vqcompress.shapes.render import SIZE, coverage
from vqcompress.shapes.scenes import BACKGROUNDS, COLORS, RADII, SHAPES

MIN_CONTRAST = 48.0  # RGB distance from the background above which a pixel belongs to an object
MIN_AREA = 9.0  # pixels; a smaller region is no object
MAX_COLOR_DISTANCE = 80.0  # RGB distance up to which a colour is given a palette name
MAX_MISFIT = 0.16  # squared misfit relative to the energy, above which a shape is unknown
UNKNOWN = "unknown"
BLURS = (0.0, 0.6)
SCALES = (0.94, 1.0, 1.06)


@dataclass(frozen=True)
class Detection:
    """One object: names (or `unknown`), centre and radius in pixels, misfit of the best template."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    misfit: float


def detect(image: np.ndarray) -> tuple[str, list[Detection]]:
    """uint8 [32, 32, 3] -> name of the background, objects."""
    pixels = image.astype(np.float32)
    frame = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    background = np.median(frame, axis=0)
    contrast = np.linalg.norm(pixels - background, axis=-1)
    labels, count = ndimage.label(contrast > MIN_CONTRAST)
    found = [_describe(pixels - background, background, labels, index) for index in range(1, count + 1)]
    return nearest_name(background, BACKGROUNDS), [detection for detection in found if detection]


def nearest_name(color: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """Name of the palette colour nearest to an RGB value in 0..255, or `unknown` if none is within reach."""
    distances = {name: float(np.linalg.norm(color - np.array(value))) for name, value in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] < MAX_COLOR_DISTANCE else UNKNOWN


def _describe(offset: np.ndarray, background: np.ndarray, labels: np.ndarray, index: int) -> Detection | None:
    """Colour from the region's pixels furthest from the background, shape from each pixel's share of that colour."""
    own = labels == index
    strength = np.linalg.norm(offset, axis=-1)
    strongest = own & (strength >= np.quantile(strength[own], 0.6))
    color = np.median(offset[strongest], axis=0)
    alpha = np.clip(offset @ color / float(color @ color), 0.0, 1.0)
    alpha = alpha * (ndimage.binary_dilation(own) & ((labels == 0) | own))
    if alpha.sum() < MIN_AREA:
        return None
    misfit, shape, x, y, radius = min(_template_fits(alpha))
    size = min(RADII, key=lambda name: abs(RADII[name] - radius))
    name = shape if misfit < MAX_MISFIT else UNKNOWN
    return Detection(name, nearest_name(color + background, COLORS), size, x, y, radius, misfit)


def _template_fits(alpha: np.ndarray) -> Iterator[tuple[float, str, float, float, float]]:
    """(misfit, shape, x, y, radius) of every template with alpha's area and centroid, slightly scaled and blurred."""
    area = float(alpha.sum())
    rows, columns = np.indices(alpha.shape) + 0.5
    cx, cy = float((alpha * columns).sum() / area), float((alpha * rows).sum() / area)
    for shape in SHAPES:
        unit_area, drop = _unit_geometry(shape)
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
def _unit_geometry(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1, and how far its centroid lies below its centre."""
    radius, centre = 12.0, SIZE / 2
    alpha = coverage(shape, centre, centre, radius)
    rows = np.arange(SIZE)[:, None] + 0.5
    drop = float((alpha * rows).sum() / alpha.sum()) - centre
    return float(alpha.sum()) / radius**2, drop / radius
