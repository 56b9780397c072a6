"""Fine-tuning as a part of compressing a pipeline: record the teacher first, then put packed layers in and let them learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vqcompress.architectures import Architecture, Pipeline
from vqcompress.denoiser_calls.partial_run import weight_sharing_copy
from vqcompress.errors import RecipeError
from vqcompress.finetune.block_stage import tune_blocks
from vqcompress.finetune.dataset import DistillationData, record_distillation
from vqcompress.finetune.presets import training_preset
from vqcompress.finetune.requantize import plan_requantization
from vqcompress.finetune.whole_stage import tune_whole
from vqcompress.finetune.worst_layers import encode_worst
from vqcompress.layers import swap
from vqcompress.progress import Progress
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.recipe import Recipe
from vqcompress.run_store import RunStore


def prepare_distillation(
    recipe: Recipe,
    pipeline: Pipeline,
    architecture: Architecture,
    components: Sequence[str],
    prompts: Sequence[str],
    calibration_prompts: Sequence[str],
    store: RunStore,
    progress: Progress,
) -> DistillationData | None:
    """The teacher's calls, recorded while ``pipeline`` is still dense; ``None`` when the recipe asks for no fine-tuning.

    Raises `RecipeError` when the denoiser is not among the components that are compressed.
    """
    if recipe.finetune == "none":
        return None
    if architecture.denoiser not in components:
        raise RecipeError(
            f"fine-tuning is for the denoiser ({architecture.denoiser}), and only {', '.join(components)} is compressed; "
            "leave finetune at 'none', or name the denoiser among the components"
        )
    return record_distillation(
        pipeline, architecture, prompts, calibration_prompts, store,
        training=recipe.training, calibration=recipe.calibration, seed=recipe.seed, progress=progress,
    )  # fmt: skip


def swap_and_tune(
    recipe: Recipe,
    pipeline: Pipeline,
    architecture: Architecture,
    quantized: Mapping[str, QuantizedWeight],
    distillation: DistillationData,
    store: RunStore,
    *,
    progress: Progress,
    **described: Mapping[str, str],
) -> None:
    """Put packed layers into the denoiser, in place, and let it learn as the recipe says, the worst of ``quantized`` encoded anew; ``described`` goes to `swap`."""
    denoiser: nn.Module = architecture.module(pipeline, architecture.denoiser)
    options: dict[str, Any] = {"training": recipe.training, "seed": recipe.seed, "progress": progress}
    guidance = recipe.calibration.sampling.resolve(architecture.defaults).guidance
    scheduler = getattr(pipeline, "scheduler", None)
    quantized = encode_worst(denoiser, quantized, distillation, recipe, guidance, scheduler, store, progress)
    original = weight_sharing_copy(denoiser)
    tune_blocks(denoiser, quantized, distillation, store, **options)
    swap(denoiser, {}, **described)
    if recipe.finetune == "full":
        again = (
            training_preset(recipe.training).recode_steps > 0
        )  # without learning in between they would come out as they are
        requantization = (
            plan_requantization(denoiser, lambda: original, distillation, recipe, guidance, scheduler, store)
            if again
            else None
        )
        del original  # and with it the dense weights
        tune_whole(
            denoiser,
            distillation,
            store.folder,
            store,
            guidance=guidance,
            scheduler=scheduler,
            requantization=requantization,
            **options,
        )
