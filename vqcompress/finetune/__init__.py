"""A packed denoiser learns from the original: everything continuous learns, and the worst layers get new codes."""

from vqcompress.finetune.descent import Outcome
from vqcompress.finetune.lessons import Lessons, record_lessons
from vqcompress.finetune.prompt_split import PromptSplit, split_prompts
from vqcompress.finetune.recoding import Recoding, found_recoding, plan_recoding
from vqcompress.finetune.stage_one import tune_blocks
from vqcompress.finetune.stage_two import tune_whole
from vqcompress.finetune.story import prepare_lessons, swap_and_tune
from vqcompress.finetune.worst_layers import encode_worst

__all__ = [
    "Lessons",
    "Outcome",
    "PromptSplit",
    "Recoding",
    "encode_worst",
    "found_recoding",
    "plan_recoding",
    "prepare_lessons",
    "record_lessons",
    "split_prompts",
    "swap_and_tune",
    "tune_blocks",
    "tune_whole",
]
