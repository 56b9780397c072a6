"""What a comparison is measured on: prompts, how many images, from which seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vqcompress.errors import VQCompressError
from vqcompress.sampling_config import SamplingConfig

MOST_IMAGES = 10_000
Judge = Callable[[object, str], Mapping[str, bool]]
"""``(PIL image, prompt) -> {question: answer}``: whether an image shows what its prompt says."""


@dataclass(frozen=True)
class EvaluationSet:
    """``prompts`` to draw, their ``source`` in words, and a ``judge`` that can read all of them, if there is one."""

    prompts: tuple[str, ...]
    source: str = "given"
    judge: Judge | None = None


@dataclass(frozen=True)
class EvaluationConfig:
    """How much is drawn and measured.

    Images are of the first ``count`` prompts; image ``i`` starts from ``seed + i``. The denoiser's calls are recorded
    on the first ``trajectory_prompts``, second moments for layer errors on the first ``layer_prompts`` (0: all inputs
    count alike). With ``verified``, folders are compared with their manifests before they are opened. ``dense_budget``
    is that of each folder's pipeline (`vqcompress.set_dense_budget`). Raises `VQCompressError` without images, for more
    than `MOST_IMAGES`, and for a seed that is none.
    """

    count: int = 48
    seed: int = 1000
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    trajectory_prompts: int = 8
    layer_prompts: int = 4
    verified: bool = True
    dense_budget: str | int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_IMAGES:
            raise VQCompressError(f"a comparison draws 1 to {MOST_IMAGES} images of each variant, got {self.count}")
        if not 0 <= self.seed < 2**63 - MOST_IMAGES:
            raise VQCompressError(f"seed {self.seed} is none: it is a whole number from 0 on, and below 2^63 by images")
