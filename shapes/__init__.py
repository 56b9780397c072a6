"""The embedded model `shapes`: a small text-to-image pipeline in SDXL's form, its world and its judge."""

from pathlib import Path

DEFAULT_STEPS = 20
DEFAULT_GUIDANCE = 3.0
IMAGE_SIZE = 32

__all__ = ["DEFAULT_GUIDANCE", "DEFAULT_STEPS", "IMAGE_SIZE", "pipeline_path"]


def pipeline_path() -> Path:
    """Folder of the shipped pipeline, an ordinary diffusers folder (fp16 safetensors)."""
    return Path(__file__).resolve().parent / "pipeline"
