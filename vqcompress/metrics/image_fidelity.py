"""How close are the compressed model's images to the original's from the same seeds?"""

from __future__ import annotations

from torch import Tensor

from vqcompress.errors import VQCompressError
from vqcompress.metrics.feature_distance import FEATURE_DISTANCE
from vqcompress.metrics.image_metric import ImageMetric
from vqcompress.metrics.psnr import PSNR, PSNR_MEAN, PSNR_MEDIAN, PSNR_WORST
from vqcompress.metrics.ssim import SSIM

IMAGE_METRICS: tuple[ImageMetric, ...] = (PSNR, PSNR_MEAN, PSNR_MEDIAN, PSNR_WORST, SSIM, FEATURE_DISTANCE)


def image_fidelity(images: Tensor, originals: Tensor) -> dict[str, float]:
    """All of `IMAGE_METRICS` by name, of ``images`` against ``originals``.

    Both are ``[n, channels, height, width]`` in 0..1. Raises `VQCompressError` when they differ in shape or are empty.
    """
    images, originals = _checked(images, originals)
    return {metric.name: metric.measure(images, originals) for metric in IMAGE_METRICS}


def fidelity_per_image(images: Tensor, originals: Tensor) -> dict[str, tuple[float, ...]]:
    """Those of `IMAGE_METRICS` that have a value for each image: name -> values in the order of the images."""
    images, originals = _checked(images, originals)
    found = {each.name: each.per_image(images, originals) for each in IMAGE_METRICS if each.per_image}
    return {name: tuple(values.double().tolist()) for name, values in found.items()}


def _checked(images: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    if images.shape != originals.shape or images.ndim != 4 or not len(images):
        raise VQCompressError(
            f"images {tuple(images.shape)} cannot be compared with originals {tuple(originals.shape)}: "
            "both must be the same non-empty batch [n, channels, height, width]"
        )
    return images.double(), originals.double()
