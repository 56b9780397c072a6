"""Prompts, seeds and sampler settings of one calibration run, taken batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

from vqcompress.architectures import Architecture, Pipeline
from vqcompress.errors import CalibrationError

PROBE_STEPS = 2


@dataclass(frozen=True)
class SamplingRun:
    """``prompts[i]`` always starts from noise seeded with ``seed + i``. With ``encode_only`` just the text encoders
    run."""

    pipeline: Pipeline
    architecture: Architecture
    prompts: tuple[str, ...]
    seed: int
    steps: int | None
    guidance: float | None
    height: int | None
    width: int | None
    batch_size: int
    encode_only: bool = False

    def __post_init__(self) -> None:
        if not self.prompts:
            raise CalibrationError("no calibration prompts; give a prompt set with at least one")
        if self.batch_size < 1:
            raise CalibrationError(f"the calibration batch size must be at least 1, got {self.batch_size}")

    @property
    def batches(self) -> int:
        """Number of batches; the last may be smaller."""
        return -(-len(self.prompts) // self.batch_size)

    @property
    def all_steps(self) -> int:
        """Denoising steps of every prompt."""
        return self.architecture.defaults.steps if self.steps is None else self.steps

    def batch(self, index: int) -> None:
        """Sample batch ``index`` to its final latents."""
        first = index * self.batch_size
        self._sample(first, self.prompts[first : first + self.batch_size], self.steps)

    def probe(self) -> None:
        """Sample the first prompt alone with few steps."""
        self._sample(0, self.prompts[:1], min(PROBE_STEPS, self.all_steps))

    @property
    def repeats(self) -> float:
        """How many times as many rows all batches show as `probe` does, about."""
        return len(self.prompts) * max(self.all_steps / PROBE_STEPS, 1.0)

    def trial(self) -> None:
        """Sample the first prompt alone with all steps."""
        self._sample(0, self.prompts[:1], self.steps)

    def _sample(self, first: int, prompts: tuple[str, ...], steps: int | None) -> None:
        if self.encode_only:
            guidance = self.architecture.defaults.guidance if self.guidance is None else self.guidance
            self.architecture.encode(self.pipeline, prompts, guidance=guidance)
            return
        self.architecture.sample(
            self.pipeline,
            prompts,
            seeds=range(self.seed + first, self.seed + first + len(prompts)),
            steps=steps,
            guidance=self.guidance,
            height=self.height,
            width=self.width,
            output_type="latent",
        )
