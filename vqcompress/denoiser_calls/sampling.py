"""A run of a pipeline's sampler: prompts, seeds and sampling settings, taken batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vqcompress.architectures import Architecture, Pipeline
from vqcompress.architectures.roles import REFUSALS
from vqcompress.errors import CalibrationError, VQCompressError, first_line
from vqcompress.sampling_config import SamplingConfig
from vqcompress.working_memory import is_out_of_memory


@dataclass(frozen=True)
class SamplingRun:
    """Prompts to sample ``batch_size`` at a time, or as many as the architecture takes; ``prompts[i]`` starts from
    noise seeded with ``seed + i``.

    ``component`` is the denoiser whose calls are of interest (None: the architecture's first). With ``encode_only``
    only the text encoders run, with ``autoencode`` the images are decoded and encoded again. Raises `CalibrationError`
    for no prompts and for a batch size below 1.
    """

    pipeline: Pipeline
    architecture: Architecture
    prompts: tuple[str, ...]
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch_size: int = 1
    encode_only: bool = False
    component: str | None = None
    autoencode: bool = False

    def __post_init__(self) -> None:
        if not self.prompts:
            raise CalibrationError("no calibration prompts; give a prompt set with at least one")
        if self.batch_size < 1:
            raise CalibrationError(f"the calibration batch size must be at least 1, got {self.batch_size}")
        if (limit := self.architecture.batch_limit) and self.batch_size > limit:
            object.__setattr__(self, "batch_size", limit)

    @property
    def denoiser(self) -> str:
        """The denoiser whose calls are of interest."""
        return self.component or self.architecture.denoiser

    @property
    def batches(self) -> int:
        """Number of batches; the last may be smaller."""
        return -(-len(self.prompts) // self.batch_size)

    @property
    def steps(self) -> int:
        """Denoising steps of every prompt."""
        return self.sampling.resolve(self.architecture.defaults).steps

    def batch(self, index: int) -> Any:
        """Sample batch ``index``; returns its final latents, ``[n, channels, …]``, or None for other parts."""
        first = index * self.batch_size
        return self._sample(first, self.prompts[first : first + self.batch_size], self.sampling)

    def probe(self) -> None:
        """Sample the first prompt alone with few steps."""
        self._sample(0, self.prompts[:1], replace(self.sampling, steps=min(self.architecture.probe_steps, self.steps)))

    @property
    def repeats(self) -> float:
        """How many times as many samples all batches show as `probe` does, about."""
        return len(self.prompts) * (1.0 if self.autoencode else max(self.steps / self.architecture.probe_steps, 1.0))

    def first_prompt(self) -> None:
        """Sample the first prompt alone with all steps."""
        self._sample(0, self.prompts[:1], self.sampling)

    def _sample(self, first: int, prompts: tuple[str, ...], sampling: SamplingConfig) -> Any:
        if self.encode_only:
            guidance = sampling.resolve(self.architecture.defaults).guidance
            self.architecture.encode(self.pipeline, prompts, guidance=guidance)
            return None
        seeds = range(self.seed + first, self.seed + first + len(prompts))
        try:
            if self.autoencode:
                self.architecture.autoencode(self.pipeline, prompts, seeds=seeds, sampling=sampling)
                return None
            return self.architecture.sample(
                self.pipeline, prompts, seeds=seeds, sampling=sampling, output_type="latent"
            )
        except REFUSALS as error:
            if isinstance(error, VQCompressError) or is_out_of_memory(error):
                raise
            raise CalibrationError(self._refusal(sampling, error)) from error

    def _refusal(self, sampling: SamplingConfig, error: Exception) -> str:
        how = sampling.resolve(self.architecture.defaults)
        return (
            f"{type(self.pipeline).__name__} cannot sample {how.height} x {how.width} pixels in {how.steps} steps: "
            f"{first_line(error).rstrip('.')}; choose others"
        )
