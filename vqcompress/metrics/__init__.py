"""What a compressed model costs: one question a file, plain functions, numbers out."""

from vqcompress.metrics.alignment import alignment, wilson_interval
from vqcompress.metrics.denoiser_error import Energies, denoiser_error, energies_by_timestep, error_by_timestep
from vqcompress.metrics.equal_bytes import bytes_at_error, error_at_bytes
from vqcompress.metrics.image_fidelity import image_fidelity
from vqcompress.metrics.sizes import pipeline_bytes, weight_bytes

__all__ = [
    "Energies",
    "alignment",
    "bytes_at_error",
    "denoiser_error",
    "energies_by_timestep",
    "error_at_bytes",
    "error_by_timestep",
    "image_fidelity",
    "pipeline_bytes",
    "weight_bytes",
    "wilson_interval",
]
