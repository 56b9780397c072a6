"""Render a scene: each object is drawn on a fine grid and averaged down, so edges are anti-aliased."""

from __future__ import annotations

import numpy as np

from vqcompress.shapes.scenes import BACKGROUNDS, COLORS, Scene

SIZE = 32
FINE = 4  # fine-grid samples per pixel and axis


def render(scene: Scene) -> np.ndarray:
    """Image of ``scene``: uint8 [32, 32, 3]."""
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background]
    for item in scene.items:
        alpha = coverage(item.shape, item.x, item.y, item.radius)[..., None]
        image += alpha * (np.asarray(COLORS[item.color], np.float32) - image)
    return np.rint(image).astype(np.uint8)


def coverage(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """Share of each pixel that the shape covers: float32 [32, 32] in 0..1; centre and radius in pixels."""
    low_x, low_y = max(int(x - radius) - 1, 0), max(int(y - radius) - 1, 0)
    span = int(2 * radius) + 4
    fine = (np.arange(span * FINE, dtype=np.float32) + 0.5) / FINE
    u = ((fine + low_x - x) / radius)[None, :]
    v = ((fine + low_y - y) / radius)[:, None]
    inside = INSIDE[shape](u, v)
    patch = inside.reshape(span, FINE, span, FINE).mean((1, 3), dtype=np.float32)
    alpha = np.zeros((SIZE, SIZE), np.float32)
    seen = alpha[low_y : low_y + span, low_x : low_x + span]
    seen[:] = patch[: seen.shape[0], : seen.shape[1]]
    return alpha


def _circle(u, v):
    return u * u + v * v <= 0.97


def _square(u, v):
    return (abs(u) <= 0.86) & (abs(v) <= 0.86)


def _triangle(u, v):
    return (v <= 0.88) & (2 * abs(u) <= v + 1.0)


def _diamond(u, v):
    return 1.25 * abs(u) + abs(v) <= 1.0


def _cross(u, v):
    return ((abs(u) <= 0.3) & (abs(v) <= 1.0)) | ((abs(v) <= 0.3) & (abs(u) <= 1.0))


def _star(u, v):
    """Five points, one up; the edge between point and notch is straight."""
    angle = np.arctan2(u, -v)
    fold = abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    notch, half = 0.42, np.pi / 5
    tip_x, tip_y = 1.08, 0.0
    notch_x, notch_y = notch * np.cos(half), notch * np.sin(half)
    r = np.sqrt(u * u + v * v)
    px, py = r * np.cos(fold), r * np.sin(fold)
    return (notch_x - tip_x) * (py - tip_y) - (notch_y - tip_y) * (px - tip_x) >= 0


def _ring(u, v):
    r2 = u * u + v * v
    return (r2 <= 1.0) & (r2 >= 0.25)


def _bar(u, v):
    return (abs(u) <= 1.0) & (abs(v) <= 0.4)


INSIDE = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
    "star": _star,
    "ring": _ring,
    "bar": _bar,
}
