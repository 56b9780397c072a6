"""The list of families. The first that supports a pipeline is used."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from vqcompress.architectures.architecture import VAE, Architecture, Pipeline
from vqcompress.architectures.call_inputs import missing_inputs
from vqcompress.architectures.class_conditional import ClassConditionalArchitecture
from vqcompress.architectures.clip_pixart import ClipPixArtArchitecture
from vqcompress.architectures.dit import DiTArchitecture
from vqcompress.architectures.generic import GenericArchitecture, find_denoisers
from vqcompress.architectures.lumina import LuminaArchitecture
from vqcompress.architectures.modular import is_modular, why_refused
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
    GenericArchitecture,  # last: it supports any pipeline with a denoiser whose call it can give all inputs
)


def architecture_of(pipeline: Pipeline) -> Architecture:
    """The description of ``pipeline``. Raises `ArchitectureError` if no family supports it."""
    if is_modular(pipeline):
        raise ArchitectureError(why_refused(pipeline))
    for family in FAMILIES:
        if family.supports(pipeline):
            return _with_vae(family.of(pipeline), pipeline)
    kind = type(pipeline).__name__
    if not find_denoisers(pipeline):
        raise ArchitectureError(
            f"{kind} has no denoiser, a network that is called with a time: vqcompress quantizes pipelines around one"
        )
    raise ArchitectureError(
        f"{kind} cannot be calibrated: its call needs {', '.join(missing_inputs(pipeline))}, which another pipeline "
        "or a user makes; open the pipeline that makes them too (a combined one, where there is one)"
    )


def _with_vae(found: Architecture, pipeline: Pipeline) -> Architecture:
    has_one = isinstance(getattr(pipeline, VAE, None), nn.Module) and VAE not in found.components
    return replace(found, components=(*found.components, VAE)) if has_one else found
