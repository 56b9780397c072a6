"""The list of families. The first that supports a pipeline is used."""

from __future__ import annotations

from vqcompress.architectures.architecture import Architecture, Pipeline
from vqcompress.architectures.class_conditional import ClassConditionalArchitecture
from vqcompress.architectures.clip_pixart import ClipPixArtArchitecture
from vqcompress.architectures.dit import DiTArchitecture
from vqcompress.architectures.generic import GenericArchitecture
from vqcompress.architectures.lumina import LuminaArchitecture
from vqcompress.architectures.pixart import PixArtArchitecture
from vqcompress.architectures.text_flow import TextFlowArchitecture
from vqcompress.architectures.unet import UNetArchitecture
from vqcompress.errors import ArchitectureError

FAMILIES: tuple[type[Architecture], ...] = (
    UNetArchitecture,
    DiTArchitecture,
    ClassConditionalArchitecture,
    PixArtArchitecture,
    LuminaArchitecture,
    ClipPixArtArchitecture,
    TextFlowArchitecture,
    GenericArchitecture,  # last: it supports any pipeline with a prompt and a denoiser
)


def architecture_of(pipeline: Pipeline) -> Architecture:
    """The description of ``pipeline``. Raises `ArchitectureError` if no family supports it."""
    for family in FAMILIES:
        if family.supports(pipeline):
            return family.of(pipeline)
    raise ArchitectureError(
        f"{type(pipeline).__name__} is no text-to-image or class-conditional pipeline that vqcompress can call: "
        "it needs a `unet` or a `transformer`"
    )
