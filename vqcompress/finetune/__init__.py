"""A packed denoiser learns from the original: everything continuous learns, and the worst layers get new codes."""

from vqcompress.finetune.block_stage import tune_blocks
from vqcompress.finetune.dataset import DistillationData, record_distillation
from vqcompress.finetune.prompt_split import PromptSplit, split_prompts
from vqcompress.finetune.requantize import Requantization, open_requantization, plan_requantization
from vqcompress.finetune.run import prepare_distillation, swap_and_tune
from vqcompress.finetune.trainer import Outcome
from vqcompress.finetune.whole_stage import tune_whole
from vqcompress.finetune.worst_layers import encode_worst

__all__ = [
    "DistillationData",
    "Outcome",
    "PromptSplit",
    "Requantization",
    "encode_worst",
    "open_requantization",
    "plan_requantization",
    "prepare_distillation",
    "record_distillation",
    "split_prompts",
    "swap_and_tune",
    "tune_blocks",
    "tune_whole",
]
