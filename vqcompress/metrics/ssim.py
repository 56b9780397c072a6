"""Structural similarity (Wang et al. 2004, IEEE TIP 13, equation 13), 11-tap Gaussian window, mean over images."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vqcompress.metrics.image_metric import ImageMetric


def _per_image(images: Tensor, originals: Tensor) -> Tensor:
    """``[n]``."""
    found = structural_similarity_index_measure(images, originals, data_range=1.0, reduction="none")
    return (found if isinstance(found, Tensor) else found[0]).reshape(-1)


SSIM = ImageMetric("ssim", lambda a, b: float(_per_image(a, b).mean()), "SSIM", decimals=4, per_image=_per_image)
