"""The models that come with the package: where each one lies, how it is sampled, and what scores its images.

The functions of a row are dotted names (``module:function``), resolved where they are needed. So every floor can read
the table, and none of them imports a model's own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EmbeddedModel:
    """What is particular to one model.

    ``folder`` is its pipeline's folder in ``package``; ``prompt_set`` calibrates it. ``judge`` names a function from
    prompts to a judge of images (`report.evaluation.Judge`), or to None where it cannot read one of the prompts.
    ``held_out`` names a function from a count to prompts that training never saw; None where the prompt set itself
    evaluates. ``latents`` are the side and the channels of its denoiser's input, which no published model has.
    """

    folder: str
    prompt_set: str
    judge: str
    held_out: str | None
    package: str = "vqcompress.shapes"
    steps: int = 20
    guidance: float = 3.0
    latents: tuple[int, int] = (8, 8)

    @property
    def path(self) -> Path:
        """Folder of the pipeline, in diffusers' layout (fp16 safetensors)."""
        return Path(str(files(self.package).joinpath(self.folder)))

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Whether a denoiser's ``config`` has this model's latents."""
        return (config["sample_size"], config["in_channels"]) == self.latents


_JUDGE, _HELD_OUT = "vqcompress.shapes.judge:judge_for", "vqcompress.shapes.scenes:held_out_captions"
_HELD_OUT_POSTERS = "vqcompress.shapes.posters.scenes:held_out_captions"

EMBEDDED: dict[str, EmbeddedModel] = {
    "shapes": EmbeddedModel("pipeline", "shapes", _JUDGE, _HELD_OUT),
    "shapes-dit": EmbeddedModel("pipeline_dit", "shapes", _JUDGE, _HELD_OUT),
    "shapes-moe": EmbeddedModel("pipeline_moe", "shapes_classes", _JUDGE, None),
    "posters": EmbeddedModel("pipeline_posters", "posters", _JUDGE, _HELD_OUT_POSTERS, latents=(16, 12)),
}
"""Alias of each model, which is also its architecture's name."""
