"""What a compressed model loses and how large it is: one metric per file, plain functions."""

from vqcompress.metrics.bootstrap import Estimate, estimate, mean, median, paired_difference, ratio_of_sums
from vqcompress.metrics.caption_accuracy import caption_accuracy, overall, wilson_interval
from vqcompress.metrics.denoiser_error import (
    Energies,
    denoiser_error,
    energies_by_image,
    energies_by_timestep,
    error_by_timestep,
    signal_to_error_db,
)
from vqcompress.metrics.image_fidelity import IMAGE_METRICS, fidelity_per_image, image_fidelity
from vqcompress.metrics.image_metric import ImageMetric
from vqcompress.metrics.sizes import pipeline_bytes, weight_bytes

__all__ = [
    "IMAGE_METRICS",
    "Energies",
    "Estimate",
    "ImageMetric",
    "caption_accuracy",
    "denoiser_error",
    "energies_by_image",
    "energies_by_timestep",
    "error_by_timestep",
    "estimate",
    "fidelity_per_image",
    "image_fidelity",
    "mean",
    "median",
    "overall",
    "paired_difference",
    "pipeline_bytes",
    "ratio_of_sums",
    "signal_to_error_db",
    "weight_bytes",
    "wilson_interval",
]
