"""How a pipeline samples: steps, guidance scale, image size."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from vqcompress.errors import RecipeError


@dataclass(frozen=True)
class GivenInputs:
    """What a user gives a pipeline's call beside the prompt; ``None``: nothing, or the pipeline's own default.

    ``image`` and ``mask`` are PIL images, to start from, to edit or to animate, and white where to paint anew.
    ``strength`` in 0..1 is how far an image is noised before it is denoised. ``frames`` and ``rate`` (frames a second)
    are a video's.
    """

    negative_prompt: str | None = None
    image: Any = None
    mask: Any = None
    strength: float | None = None
    frames: int | None = None
    rate: float | None = None


@dataclass(frozen=True)
class ResolvedSampling:
    """Sampling with nothing left open; ``height`` and ``width`` in pixels.

    ``images`` is a folder with images for pipelines that need some (None: they are drawn), where ``inputs`` has none.
    """

    steps: int
    guidance: float
    height: int
    width: int
    images: str | None = None
    inputs: GivenInputs = GivenInputs()

    def config(self) -> SamplingConfig:
        """The same as a request."""
        return SamplingConfig(self.steps, self.guidance, self.height, self.width, self.images, self.inputs)


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling as a user asks for it: ``None`` leaves a value to the pipeline's architecture."""

    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    images: str | None = None
    inputs: GivenInputs = GivenInputs()

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
            self.inputs,
        )
