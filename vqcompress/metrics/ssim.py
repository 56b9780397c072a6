"""Structural similarity (Wang et al. 2004, IEEE TIP 13, equation 13), 11-tap Gaussian window, mean over images."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vqcompress.metrics.image_metric import ImageMetric


def _mean(images: Tensor, originals: Tensor) -> float:
    found = structural_similarity_index_measure(images, originals, data_range=1.0)
    return float(found if isinstance(found, Tensor) else found[0])


SSIM = ImageMetric("ssim", _mean, "SSIM", decimals=3)
