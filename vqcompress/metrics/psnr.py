"""Peak signal-to-noise ratio in dB; identical images have an infinite one."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from vqcompress.metrics.image_metric import ImageMetric


def _over_all_pixels(images: Tensor, originals: Tensor) -> float:
    return float(peak_signal_noise_ratio(images, originals, data_range=1.0))


def _per_image(images: Tensor, originals: Tensor) -> Tensor:
    """``[n]``."""
    return peak_signal_noise_ratio(images, originals, data_range=1.0, dim=(1, 2, 3), reduction="none")


PSNR = ImageMetric("psnr", _over_all_pixels, "PSNR", "dB", per_image=_per_image)
"""Over all pixels together, so one bad image weighs by its error; the report shows single images' PSNR."""
PSNR_MEDIAN = ImageMetric(
    "psnr_median", lambda images, originals: float(np.median(_per_image(images, originals).numpy()))
)
PSNR_MEAN = ImageMetric("psnr_mean", lambda images, originals: float(_per_image(images, originals).mean()))
PSNR_WORST = ImageMetric("psnr_worst", lambda images, originals: float(_per_image(images, originals).min()))
