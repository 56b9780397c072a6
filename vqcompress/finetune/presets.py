"""Three sizes of fine-tuning, and what a recipe changes about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vqcompress.recipe import Training


@dataclass(frozen=True)
class TrainingPreset:
    """``prompts`` teach, ``held_out`` prompts decide when to stop; ``calls`` of each held-out trajectory are measured on.

    ``steps`` of ``batch_size`` units, ``micro_batch`` at once in memory; ``rate`` as in `Schedule`; ``block_steps`` steps
    for each block on ``block_units`` units. Layers get new codes: before the blocks learn all that matter, the worst ``encode_weights``
    weights of a large model, in the metric that ``encode_units`` units give, and while the whole denoiser does at most ``recode`` of the worst once more, each after ``recode_steps`` steps, in the metric of
    ``recode_units`` units; none ever where ``recode`` is 0.
    """

    prompts: int
    held_out: int
    held_out_calls: int
    steps: int
    batch_size: int
    micro_batch: int
    rate: float
    measure_every: int
    patience: int
    block_steps: int
    block_units: int
    encode_units: int
    encode_weights: int
    recode: int
    recode_steps: int
    recode_units: int


PRESETS = {
    "fast": TrainingPreset(48, 8, 4, 100, 8, 8, 0.05, 20, 4, 16, 32, 256, 1 << 27, 10, 0, 256),
    "default": TrainingPreset(192, 16, 5, 400, 8, 8, 0.05, 25, 6, 24, 32, 256, 1 << 28, 10, 60, 512),
    "best": TrainingPreset(512, 24, 5, 2000, 16, 8, 0.05, 50, 8, 48, 96, 1024, 1 << 30, 24, 100, 1024),
}
"""VQDM (arXiv 2409.00492, section 4) trains on 512 prompts for 1600 steps of 64; smaller batches with larger steps get there sooner."""


def training_preset(training: Training) -> TrainingPreset:
    """The preset with the recipe's own numbers in place of its."""
    chosen = PRESETS[training.preset]
    given = {
        name: value
        for name in ("prompts", "held_out", "steps", "batch_size", "micro_batch", "rate", "block_steps", "recode")
        if (value := getattr(training, name)) is not None
    }
    chosen = replace(chosen, **given)
    every = min(chosen.measure_every, max(1, chosen.steps // 4))
    return replace(chosen, micro_batch=min(chosen.micro_batch, chosen.batch_size), measure_every=every)
