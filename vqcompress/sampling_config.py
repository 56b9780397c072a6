"""How a pipeline samples: steps, guidance scale, image size."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from vqcompress.errors import RecipeError


@dataclass(frozen=True)
class ResolvedSampling:
    """Sampling with nothing left open; ``height`` and ``width`` in pixels.

    ``images`` is a folder with images for pipelines that need some (None: they are drawn).
    """

    steps: int
    guidance: float
    height: int
    width: int
    images: str | None = None

    def config(self) -> SamplingConfig:
        """The same as a request."""
        return SamplingConfig(self.steps, self.guidance, self.height, self.width, self.images)


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling as a user asks for it: ``None`` leaves a value to the pipeline's architecture."""

    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    images: str | None = None

    def __post_init__(self) -> None:
        if self.guidance is not None and not isfinite(self.guidance):
            raise RecipeError(f"guidance {self.guidance} is not a finite number")

    def resolve(self, defaults: ResolvedSampling) -> ResolvedSampling:
        """These values, and those of ``defaults`` where there are none."""
        return ResolvedSampling(
            defaults.steps if self.steps is None else self.steps,
            defaults.guidance if self.guidance is None else self.guidance,
            self.height or defaults.height,
            self.width or defaults.width,
            self.images,
        )
