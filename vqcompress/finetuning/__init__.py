"""A packed denoiser learns from the dense teacher: everything continuous is trained, and the worst layers get new
codes."""

from vqcompress.finetuning.block_stage import tune_blocks
from vqcompress.finetuning.context import TuningContext
from vqcompress.finetuning.dataset import (
    DistillationData,
    PromptSplit,
    Teacher,
    open_distillation,
    record_distillation,
    split_prompts,
)
from vqcompress.finetuning.requantize import Requantization, plan_requantization, requantize_before_blocks
from vqcompress.finetuning.run import prepare_distillation, swap_and_tune
from vqcompress.finetuning.trainer import Outcome
from vqcompress.finetuning.whole_stage import tune_whole

__all__ = [
    "DistillationData",
    "Outcome",
    "PromptSplit",
    "Requantization",
    "Teacher",
    "TuningContext",
    "open_distillation",
    "plan_requantization",
    "prepare_distillation",
    "record_distillation",
    "requantize_before_blocks",
    "split_prompts",
    "swap_and_tune",
    "tune_blocks",
    "tune_whole",
]
