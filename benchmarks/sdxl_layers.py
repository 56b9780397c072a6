"""The shapes of SDXL's packed layers, and how many have each: all weights but those that touch the latents.

Written down so that a machine without diffusers can decode them all; `tests/kernels/test_gpu_check.py` holds it against
diffusers' network.
"""

from __future__ import annotations

LINEAR = {
    (320, 1280): 5,
    (640, 640): 70,
    (640, 1280): 5,
    (640, 2048): 20,
    (640, 2560): 10,
    (1280, 320): 1,
    (1280, 1280): 381,
    (1280, 2048): 120,
    (1280, 2816): 1,
    (1280, 5120): 60,
    (5120, 640): 10,
    (10240, 1280): 60,
}
CONV = {
    (320, 320, 3, 3): 8,
    (320, 640, 1, 1): 2,
    (320, 640, 3, 3): 2,
    (320, 960, 1, 1): 1,
    (320, 960, 3, 3): 1,
    (640, 320, 1, 1): 1,
    (640, 320, 3, 3): 1,
    (640, 640, 3, 3): 8,
    (640, 960, 1, 1): 1,
    (640, 960, 3, 3): 1,
    (640, 1280, 1, 1): 1,
    (640, 1280, 3, 3): 1,
    (640, 1920, 1, 1): 1,
    (640, 1920, 3, 3): 1,
    (1280, 640, 1, 1): 1,
    (1280, 640, 3, 3): 1,
    (1280, 1280, 3, 3): 11,
    (1280, 1920, 1, 1): 1,
    (1280, 1920, 3, 3): 1,
    (1280, 2560, 1, 1): 2,
    (1280, 2560, 3, 3): 2,
}
Shape = tuple[int, ...]


def shapes() -> list[Shape]:
    """One for each layer."""
    return [shape for table in (LINEAR, CONV) for shape, count in table.items() for _ in range(count)]
