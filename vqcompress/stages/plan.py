"""What a run will do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from diffusers import DiffusionPipeline
from torch import nn

from vqcompress.architectures import Architecture
from vqcompress.architectures.plain_pipeline import refuse_changed
from vqcompress.errors import ArchitectureError
from vqcompress.layers import vq_layers
from vqcompress.placement import networks
from vqcompress.recipe import Recipe


def plan_components(
    recipe: Recipe, pipeline: DiffusionPipeline, architecture: Architecture
) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
    """Component -> layers to quantize, in execution order; and component -> layer that stays dense -> reason."""
    _check_networks(recipe.components, pipeline)
    refuse_changed(pipeline, recipe.components or architecture.denoisers)
    ignore = None if recipe.ignore is None else list(recipe.ignore.items())
    layers, ignored = {}, {}
    for component in recipe.components or architecture.denoisers:
        if vq_layers(getattr(pipeline, component, None) or nn.Module()):
            raise ArchitectureError(
                f"{component} of {recipe.model} is already compressed; start from the original model, or dequantize "
                "it first"
            )
        plans = architecture.layers(pipeline, component, ignore=ignore)
        layers[component] = [plan.name for plan in plans if plan.reason is None]
        if not layers[component]:
            reason, count = Counter(plan.reason for plan in plans).most_common(1)[0] if plans else ("no matrix", 0)
            raise ArchitectureError(
                f"{component} has no layer to quantize under this recipe ({count} of {len(plans)} matrices: {reason}); "
                "see the recipe's 'ignore' patterns, or leave this component out"
            )
        ignored[component] = {plan.name: plan.reason for plan in plans if plan.reason is not None}
    return layers, ignored


def _check_networks(components: Sequence[str], pipeline: DiffusionPipeline) -> None:
    """Raise `ArchitectureError` for a component that is there and is no network."""
    for component in components:
        part = getattr(pipeline, component, None)
        if part is not None and not isinstance(part, nn.Module):
            names = ", ".join(networks(pipeline))
            raise ArchitectureError(f"{component} is a {type(part).__name__}, which has no weights; there are {names}")
