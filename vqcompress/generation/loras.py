"""LoRAs on a pipeline that draws, dense or packed: they stay beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from diffusers import DiffusionPipeline

from vqcompress.architectures.lora_baking import ScaledLora, check_loads_loras, load_lora
from vqcompress.errors import UnsupportedError


def parsed_loras(loras: Sequence[str | ScaledLora]) -> list[ScaledLora]:
    """``loras``, each ``PATH``, ``PATH:SCALE`` or a `ScaledLora`, checked as far as that goes without a pipeline.

    Raises `ArchitectureError` for a file that is missing or no safetensors, `UnsupportedError` without PEFT.
    """
    parsed = [lora if isinstance(lora, ScaledLora) else ScaledLora.parse(str(lora)) for lora in loras]
    for lora in parsed:
        lora.arguments()
    if parsed and find_spec("peft") is None:
        raise UnsupportedError("LoRAs need the package peft: pip install 'vqcompress[lora]'")
    return parsed


def load_loras(pipeline: DiffusionPipeline, loras: Sequence[str | ScaledLora]) -> None:
    """Load ``loras`` on ``pipeline``, each times its scale. Raises as `parsed_loras` does, `UnsupportedError` for a
    pipeline without a LoRA loader, and `ArchitectureError` for a LoRA of another model."""
    parsed = parsed_loras(loras)
    if not parsed:
        return
    check_loads_loras(pipeline)
    names = [f"lora{number}" for number in range(len(parsed))]
    for name, lora in zip(names, parsed, strict=True):
        load_lora(pipeline, lora, name)
    pipeline.set_adapters(names, [lora.scale for lora in parsed])
