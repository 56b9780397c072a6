"""The embedded model `shapes`: a small text-to-image pipeline in SDXL's form, its world and its judge."""

from pathlib import Path

DEFAULT_STEPS = 20
DEFAULT_GUIDANCE = 3.0
IMAGE_SIZE = 32

EMBEDDED = {
    "shapes": "pipeline",
    "shapes-dit": "pipeline_dit",
    "shapes-moe": "pipeline_moe",
}
"""Name of each model that comes with the package: its folder beside this file."""

__all__ = ["DEFAULT_GUIDANCE", "DEFAULT_STEPS", "EMBEDDED", "IMAGE_SIZE", "pipeline_path"]


def pipeline_path(name: str = "shapes") -> Path:
    """Folder of a shipped pipeline, in diffusers' layout (fp16 safetensors)."""
    return Path(__file__).resolve().parent / EMBEDDED[name]
