"""What a compressed model loses and how large it is: one metric per file, plain functions."""

from vqcompress.metrics.caption_accuracy import caption_accuracy, wilson_interval
from vqcompress.metrics.denoiser_error import Energies, denoiser_error, energies_by_timestep, error_by_timestep
from vqcompress.metrics.equal_bytes import bytes_at_error, error_at_bytes
from vqcompress.metrics.image_fidelity import IMAGE_METRICS, image_fidelity
from vqcompress.metrics.image_metric import ImageMetric
from vqcompress.metrics.sizes import pipeline_bytes, weight_bytes

__all__ = [
    "IMAGE_METRICS",
    "Energies",
    "ImageMetric",
    "bytes_at_error",
    "caption_accuracy",
    "denoiser_error",
    "energies_by_timestep",
    "error_at_bytes",
    "error_by_timestep",
    "image_fidelity",
    "pipeline_bytes",
    "weight_bytes",
    "wilson_interval",
]
