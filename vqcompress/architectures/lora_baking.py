"""Make LoRAs part of a dense pipeline's weights, so that it can be quantized with them."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from vqcompress.architectures.architecture import Pipeline
from vqcompress.errors import ArchitectureError, UnsupportedError, first_line
from vqcompress.safetensors_header import stored_header

DOWN = (".lora_A.", ".lora.down.", ".lora_down.")
"""What the name of a LoRA's first matrix contains: PEFT's, diffusers' older and kohya's names."""


@dataclass(frozen=True)
class ScaledLora:
    """``source``: a .safetensors file, a folder with one, or a Hub id; its product is multiplied by ``scale``."""

    source: str
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> ScaledLora:
        """``PATH`` or ``PATH:SCALE``. Raises `ArchitectureError` for a scale that is no number."""
        source, colon, scale = text.rpartition(":")
        if not colon or os.path.exists(text):
            return cls(text)
        try:
            return cls(source, finite(scale))
        except ValueError:
            raise ArchitectureError(f"{text!r}: after the colon comes a scale, such as {source}:0.8") from None

    def arguments(self) -> tuple[str, dict[str, Any]]:
        """What ``load_lora_weights`` takes: a folder or Hub id, and options. Pickles are never read."""
        path = Path(os.path.expanduser(self.source))
        if path.is_file():
            if path.suffix != ".safetensors":
                raise ArchitectureError(f"{path} is no .safetensors file; other kinds can hold code and are not read")
            if not stored_header(path)[0].entries:
                raise ArchitectureError(f"{path} holds no safetensors; copy or download it again")
            return str(path.parent), {"weight_name": path.name, "use_safetensors": True}
        if path.suffix == ".safetensors":
            raise ArchitectureError(f"there is no file {path}; a LoRA on the Hub is named owner/name")
        return str(path) if path.is_dir() else self.source, {"use_safetensors": True}


def finite(text: str) -> float:
    """The number that ``text`` says. Raises `ValueError` for none, and for one that is not finite."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not finite")
    return number


def bake(pipeline: Pipeline, loras: Sequence[ScaledLora]) -> None:
    """Add the products of ``loras`` to the weights of ``pipeline``, in place.

    Raises `UnsupportedError` for a pipeline without a LoRA loader or with packed layers, and `ArchitectureError` for a
    LoRA that cannot be read, or has layers that the pipeline lacks. The pipeline is then of no further use.
    """
    check_loads_loras(pipeline)
    _check_dense(pipeline)
    for number, lora in enumerate(loras):
        load_lora(pipeline, lora, f"baked{number}")
    names = [f"baked{number}" for number in range(len(loras))]
    pipeline.set_adapters(names, [lora.scale for lora in loras])
    parts = [name for name in pipeline._lora_loadable_modules if getattr(pipeline, name, None) is not None]
    pipeline.fuse_lora(components=parts, adapter_names=names)
    pipeline.unload_lora_weights()


def check_loads_loras(pipeline: Pipeline) -> None:
    """Raises `UnsupportedError` for a pipeline without a LoRA loader."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise UnsupportedError(
            f"diffusers has no LoRA loader for a {type(pipeline).__name__}: merge the LoRA with the program that "
            "made it"
        )


def _check_dense(pipeline: Pipeline) -> None:
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    packed = [name for name, part in networks.items() if getattr(part.config, "quantization_config", None) is not None]
    if packed:
        raise UnsupportedError(
            f"{', '.join(packed)} of this pipeline is packed: bake the LoRA into the original model, then quantize; or "
            "load it on the packed one, where it stays active"
        )


def load_lora(pipeline: Pipeline, lora: ScaledLora, name: str) -> None:
    """Load ``lora`` as the adapter ``name``. Raises `ArchitectureError` where it cannot be read, or has layers that the
    pipeline lacks."""
    source, options = lora.arguments()
    try:
        read = pipeline.lora_state_dict(source, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # as there is, with several LoRAs
            pipeline.load_lora_weights(source, adapter_name=name, **options)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        reason = first_line(error)
        raise ArchitectureError(f"{lora.source} could not be loaded on this pipeline: {reason}") from error
    state = read[0] if isinstance(read, tuple) else read
    wanted = sum(any(part in key for part in DOWN) for key in state)
    found = sum(
        name in layer.lora_A or name in layer.lora_embedding_A
        for part in pipeline.components.values()
        if isinstance(part, nn.Module)
        for layer in part.modules()
        if hasattr(layer, "lora_A")
    )
    if not found or found < wanted:
        raise ArchitectureError(
            f"{lora.source} has {wanted} layers, of which this pipeline has {found}: it was made for another model, or "
            "is not a LoRA"
        )
