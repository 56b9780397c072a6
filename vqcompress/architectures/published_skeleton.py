"""A published model on the meta device, in place of an opened pipeline, for `vqcompress quantize NAME --dry-run`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from torch import nn

from vqcompress.architectures.architecture import TEXT_ENCODERS, VAE, Architecture, Pipeline
from vqcompress.architectures.class_conditional import ClassConditionalArchitecture
from vqcompress.architectures.dit import DiTArchitecture
from vqcompress.architectures.families import architecture_of
from vqcompress.architectures.generic import GenericArchitecture
from vqcompress.architectures.lumina import LuminaArchitecture
from vqcompress.architectures.pixart import PixArtArchitecture
from vqcompress.architectures.published import published
from vqcompress.architectures.text_flow import TextFlowArchitecture
from vqcompress.architectures.unet import UNetArchitecture, usual_sampling
from vqcompress.errors import ArchitectureError, first_line
from vqcompress.models.class_pipeline import input_side, usual_guidance
from vqcompress.models.hub_parts import class_of
from vqcompress.models.hub_pipelines import DENOISERS, HUB_PIPELINES, HubPipeline
from vqcompress.models.presets import PRESETS, Preset
from vqcompress.models.text_pipeline import TEXT_LATENT_SIDE
from vqcompress.sampling_config import ResolvedSampling


@dataclass(frozen=True)
class Skeleton:
    """``pipeline`` has modules on the meta device: all that are quantized if it is ``whole``, else the denoiser.

    ``obstacle`` is why this machine could not run the pipeline itself, in one line, or None.
    """

    architecture: Architecture
    pipeline: Pipeline
    whole: bool = False
    obstacle: str | None = None


# diffusers' DiT has embedders of time and class in every block. The official DiT, which `vqcompress convert dit-xl-2`
# builds, has them once. The folders on the Hub have diffusers' form.
_ON_THE_HUB = {
    "dit-xl-2": Preset("diffusers_dit", {"out_channels": 8}),
    "dit-xl-2-512": Preset("diffusers_dit", {"out_channels": 8, "sample_size": 64}),
}

_UNET = (UNetArchitecture, "unet")
_TEXT_FLOW = (TextFlowArchitecture, "transformer")
_ARCHITECTURES: dict[str, tuple[type[Architecture], str]] = {
    "unet": _UNET,
    "linfusion": _UNET,
    "pixart": (PixArtArchitecture, "transformer"),
    "pt_dit": _TEXT_FLOW,
    "diffusers_dit": (DiTArchitecture, "transformer"),
    "diffusers_lumina": (LuminaArchitecture, "transformer"),
}
PIXELS_PER_LATENT = 8  # along a side: the VAEs that these models were published with
MODULAR = "it is a modular pipeline, whose folders are not opened yet: only planned"
_TEXT_OR_LABELS = ("flag_dit", "next_dit")


def published_skeleton(name: str) -> Skeleton:
    """The published model ``name``, without weights. Raises `ArchitectureError` for an unknown name, and for networks
    that the installed libraries do not have."""
    if (found := published(name)) is None:
        raise ArchitectureError(f"no published model is called {name!r}; `vqcompress presets` lists them")
    known = found[0]
    if known in HUB_PIPELINES:
        return _pipeline_skeleton(known, HUB_PIPELINES[known])
    preset = _ON_THE_HUB.get(known) or PRESETS[known]
    kind, component = _architecture(preset)
    denoiser = _denoiser(preset)
    factor = 1 if "image_size" in denoiser.config else PIXELS_PER_LATENT  # a network in pixels has no VAE
    architecture = kind(known, component, (component,), _sampling(known, kind, denoiser, factor))
    networks = {component: denoiser}
    return Skeleton(architecture, SimpleNamespace(**networks, components=networks, vae_scale_factor=factor))


def _sampling(name: str, kind: type[Architecture], denoiser: Any, factor: int) -> ResolvedSampling:
    """What the opened pipeline would sample with; ``factor`` pixels per latent."""
    if kind is ClassConditionalArchitecture:
        steps, guidance, side = kind.usual[0], usual_guidance(denoiser), input_side(denoiser)
    else:
        side = denoiser.config.get("sample_size", TEXT_LATENT_SIDE)
        steps, guidance = usual_sampling(name.removeprefix("linfusion-")) if kind is UNetArchitecture else kind.usual
    return ResolvedSampling(steps, guidance, side * factor, side * factor)


def _denoiser(preset: Preset) -> Any:
    """The module that a pipeline holds; our PixArt class with the official signature wraps diffusers' module."""
    network = preset.build("meta")
    return network.transformer if preset.family == "pixart" else network


def _architecture(preset: Preset) -> tuple[type[Architecture], str]:
    if preset.family in _TEXT_OR_LABELS and "num_classes" not in preset.arguments:
        return _TEXT_FLOW
    return _ARCHITECTURES.get(preset.family, (ClassConditionalArchitecture, "transformer"))


def _pipeline_skeleton(name: str, found: HubPipeline) -> Skeleton:
    networks = {part: row.build() for part, row in found.networks.items()}
    try:
        pipeline = _without_weights(found, networks)
        architecture = architecture_of(pipeline)
    except (ArchitectureError, ImportError) as error:
        pipeline = SimpleNamespace(**networks, components=networks)
        return Skeleton(_by_denoiser(name, found, networks), pipeline, True, first_line(error))
    if len(architecture.denoisers) < sum(part in DENOISERS for part in networks):
        architecture = _by_denoiser(name, found, networks)
    obstacle = MODULAR if "Modular" in found.pipeline else None
    return Skeleton(replace(architecture, defaults=found.sampling), pipeline, True, obstacle)


def _without_weights(found: HubPipeline, networks: dict[str, nn.Module]) -> Pipeline:
    """The pipeline with ``networks``, and neither tokenizers nor scheduler."""
    kind = class_of(f"diffusers:{found.pipeline}")
    wanted = inspect.signature(kind.__init__).parameters
    needed = [name for name, parameter in wanted.items() if name != "self" and parameter.default is parameter.empty]
    if "kwargs" in needed:  # a modular pipeline is given its components after it is made
        pipeline = kind()
        pipeline.update_components(**networks)
        return pipeline
    arguments: dict[str, Any] = {**dict.fromkeys(needed), **networks, **found.options}
    return kind(**arguments)


def _by_denoiser(name: str, found: HubPipeline, networks: dict[str, nn.Module]) -> Architecture:
    """A description by the kind of denoiser, for a pipeline that cannot be made here."""
    first, *others = (part for part in DENOISERS if part in networks)
    kind = UNetArchitecture if first == "unet" else GenericArchitecture
    beside = [part for part in (*TEXT_ENCODERS, VAE) if part in networks]
    return kind(name, first, (first, *others, *beside), found.sampling, other_denoisers=tuple(others))
