"""What a run will do, and what its results depend on."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from vqcompress.architectures import Architecture
from vqcompress.architectures.plain_pipeline import refuse_changed
from vqcompress.calibration.prompts import PromptSet
from vqcompress.errors import ArchitectureError
from vqcompress.layers import vq_layers
from vqcompress.recipe import Recipe


def recording_signature(
    recipe: Recipe, prompts: PromptSet, pipeline: DiffusionPipeline, architecture: Architecture
) -> dict[str, Any]:
    """What calibration depends on: a stopped run, or another one that reuses its recordings, must agree on it."""
    return {
        "version": version("vqcompress"),
        "calibration": recipe.calibration.model_dump(mode="json", exclude={"order"}),  # of encoding
        "keep": recipe.ignore,  # the key of folders written before the setting was called so
        "seed": recipe.seed,
        "prompts": prompts.sha256,
        "base": {name: _fingerprint(getattr(pipeline, name)) for name in architecture.components},
    }


def _fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and a sample of every tensor's values: another base model changes it."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 256)].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def plan_components(
    recipe: Recipe, pipeline: DiffusionPipeline, architecture: Architecture
) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
    """Component -> layers to quantize, in execution order; and component -> layer that stays dense -> reason."""
    refuse_changed(pipeline, recipe.components or (architecture.denoiser,))
    ignore = None if recipe.ignore is None else list(recipe.ignore.items())
    layers, ignored = {}, {}
    for component in recipe.components or (architecture.denoiser,):
        if vq_layers(getattr(pipeline, component, None) or nn.Module()):
            raise ArchitectureError(
                f"{component} of {recipe.model} is already compressed; start from the original model, or dequantize "
                "it first"
            )
        plans = architecture.layers(pipeline, component, ignore=ignore)
        layers[component] = [plan.name for plan in plans if plan.reason is None]
        if not layers[component]:
            raise ArchitectureError(
                f"{component} has no layer to quantize under this recipe; see its 'ignore' patterns"
            )
        ignored[component] = {plan.name: plan.reason for plan in plans if plan.reason is not None}
    return layers, ignored
