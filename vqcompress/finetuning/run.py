"""Fine-tuning as a part of compressing a pipeline: record the dense teacher first, then put packed layers in and
train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vqcompress.denoiser_calls.partial_run import weight_sharing_copy
from vqcompress.errors import RecipeError
from vqcompress.finetuning.block_stage import tune_blocks
from vqcompress.finetuning.context import TuningContext
from vqcompress.finetuning.dataset import DistillationData, Teacher, record_distillation
from vqcompress.finetuning.requantize import plan_requantization, requantize_before_blocks
from vqcompress.finetuning.whole_stage import tune_whole
from vqcompress.layers import swap
from vqcompress.progress import Progress
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.recipe import Recipe
from vqcompress.run_store import RunStore


def prepare_distillation(
    recipe: Recipe, teacher: Teacher, components: Sequence[str], store: RunStore, progress: Progress
) -> DistillationData | None:
    """The teacher's calls, recorded while its pipeline is still dense; ``None`` when the recipe asks for no
    fine-tuning.

    Raises `RecipeError` when the denoiser is not among the ``components`` that are compressed.
    """
    if recipe.finetune == "none":
        return None
    denoiser = teacher.architecture.denoiser
    if denoiser not in components:
        raise RecipeError(
            f"fine-tuning is for the denoiser ({denoiser}), and only {', '.join(components)} is compressed; "
            "leave finetune at 'none', or name the denoiser among the components"
        )
    return record_distillation(teacher, recipe, store, progress)


def swap_and_tune(
    denoiser: nn.Module, quantized: Mapping[str, QuantizedWeight], context: TuningContext, **reasons: Mapping[str, str]
) -> None:
    """Put packed layers into the dense ``denoiser`` and fine-tune it as the recipe says, in place.

    The layers of ``quantized`` that contribute most to the loss are encoded again. ``reasons`` why other layers stay
    dense go to `swap`.
    """
    quantized = requantize_before_blocks(denoiser, quantized, context)
    dense: Any = weight_sharing_copy(denoiser)
    tune_blocks(denoiser, quantized, context)
    swap(denoiser, {}, **reasons)
    if context.recipe.finetune == "full":
        # Without learning in between a layer would be encoded from the same weight in nearly the same metric.
        again = context.preset.requantize_steps > 0
        requantization = plan_requantization(denoiser, lambda: dense, context) if again else None
        dense = None  # frees the dense weights before training
        tune_whole(denoiser, context, requantization)
