"""Three presets of fine-tuning, and what a recipe changes about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vqcompress.recipe import Training


@dataclass(frozen=True)
class TrainingPreset:
    """How much a run trains.

    Dataset: ``prompts`` for training and ``held_out`` prompts for early stopping, ``held_out_calls`` denoiser calls
    of each trajectory of the latter. Training: ``steps`` of ``batch_size`` samples, ``micro_batch`` at once in
    memory; ``rate``, ``measure_every`` and ``patience`` as in `Schedule`; ``block_steps`` steps for each block on
    ``block_samples`` samples.

    Requantization before the blocks: all layers that matter, up to ``encode_weights`` weights, with moments over
    ``encode_samples`` samples. In the whole stage: the ``requantize`` worst layers at most, each after
    ``requantize_steps`` steps, with moments over ``requantize_samples`` samples. ``requantize`` 0 turns both off.
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
    block_samples: int
    encode_samples: int
    encode_weights: int
    requantize: int
    requantize_steps: int
    requantize_samples: int


PRESETS = {
    "fast": TrainingPreset(48, 8, 4, 100, 8, 8, 0.05, 20, 4, 16, 32, 256, 1 << 27, 10, 0, 256),
    "default": TrainingPreset(192, 16, 5, 400, 8, 8, 0.05, 25, 6, 24, 32, 256, 1 << 28, 10, 60, 512),
    "best": TrainingPreset(512, 24, 5, 2000, 16, 8, 0.05, 50, 8, 48, 96, 1024, 1 << 30, 24, 100, 1024),
}
"""VQDM (arXiv 2409.00492, section 4) trains on 512 prompts for 1600 steps of 64; smaller batches with larger steps
reach the same loss sooner."""


def training_preset(training: Training) -> TrainingPreset:
    """The preset with the recipe's own numbers in place of its."""
    chosen = PRESETS[training.preset]
    keys = ("prompts", "held_out", "steps", "batch_size", "micro_batch", "rate", "block_steps", "requantize")
    given = {name: value for name in keys if (value := getattr(training, name)) is not None}
    chosen = replace(chosen, **given)
    every = min(chosen.measure_every, max(1, chosen.steps // 4))
    return replace(chosen, micro_batch=min(chosen.micro_batch, chosen.batch_size), measure_every=every)
