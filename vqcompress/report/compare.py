"""Run the original and its compressed variants under the same conditions and put down what differs.

The original stays loaded; compressed folders are opened one after the other, and only their packed weights are kept.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from vqcompress.architectures import Architecture
from vqcompress.checkpoint import inspect, load, read_layer_table
from vqcompress.denoiser_calls.record import TeacherCall, record_teacher
from vqcompress.errors import VQCompressError
from vqcompress.metrics import (
    alignment,
    denoiser_error,
    error_by_timestep,
    image_fidelity,
    pipeline_bytes,
    weight_bytes,
)
from vqcompress.progress import Progress, silent
from vqcompress.report.candidate import Candidate, check_labels
from vqcompress.report.comparison import ORIGINAL, Comparison, Original, Settings, Share, Variant
from vqcompress.report.components import component_costs
from vqcompress.report.drawing import Drawing, draw
from vqcompress.report.experts import expert_uses
from vqcompress.report.layer_errors import Packed, layer_errors, packed_weights
from vqcompress.report.pictures import to_picture, to_png
from vqcompress.report.replay import replay
from vqcompress.report.verdicts import verdicts
from vqcompress.sampling_config import SamplingConfig

Judge = Callable[[object, str], Mapping[str, bool]]
"""``(PIL image, prompt) -> {question: answer}``"""

PICTURED = 12  # prompts whose images the report shows
VERSIONS_OF = ("vqcompress", "torch", "diffusers", "transformers")


def compare(
    original: DiffusionPipeline,
    architecture: Architecture,
    candidates: Sequence[Candidate],
    prompts: Sequence[str],
    *,
    seed: int = 1000,
    count: int = 48,
    steps: int | None = None,
    guidance: float | None = None,
    trajectory_prompts: int = 8,
    layer_prompts: int = 4,
    judge: Judge | None = None,
    name: str | None = None,
    prompt_source: str = "given",
    progress: Progress | None = None,
) -> Comparison:
    """Compare compressed folders with the pipeline that they were made from; the first is the one reported on.

    Draws ``count`` images (``prompts[:count]``, image ``i`` from ``seed + i``), records the denoiser's calls on the
    first ``trajectory_prompts`` and second moments for layer errors on the first ``layer_prompts`` (0: plain weight
    errors). None for steps and guidance means the architecture's default. ``name`` is what the report calls the model.
    Raises `VQCompressError` for no prompts or labels used twice, and whatever opening a folder raises.
    """
    check_labels(candidates)
    if not prompts or count < 1:
        raise VQCompressError("a comparison needs at least one prompt and one image")
    sampling = SamplingConfig(steps, guidance).resolve(architecture.defaults)
    drawing = Drawing(tuple(prompts[:count]), seed, sampling)
    bench = _Bench(original, architecture, drawing, judge, progress or silent)
    bench.observe_original(trajectory_prompts)
    variants = [bench.variant(candidate) for candidate in candidates]
    errors = bench.layer_errors(layer_prompts)
    variants = [replace(variant, layer_errors=errors.get(variant.label, ())) for variant in variants]
    return Comparison(
        model=name or _name_of(original),
        denoiser=architecture.denoiser,
        original=bench.original_row(),
        variants=tuple(variants),
        verdicts=verdicts(variants),
        settings=bench.settings(prompt_source, trajectory_prompts, layer_prompts),
        pictures=bench.pictures,
    )


@dataclass
class _Bench:
    """The original, what was observed of it, and the packed weights of the variants seen so far."""

    original: DiffusionPipeline
    architecture: Architecture
    drawing: Drawing
    judge: Judge | None
    progress: Progress
    calls: list[TeacherCall] = field(default_factory=list)
    packed: dict[str, Packed] = field(default_factory=dict)
    pictures: dict[str, tuple[bytes, ...]] = field(default_factory=dict)

    def observe_original(self, trajectory_prompts: int) -> None:
        """Draw the reference images and record the denoiser's calls."""
        self.images, self.seconds = draw(self.original, self.architecture, self.drawing, self._step("draw", ORIGINAL))
        self.alignment = self._judged(ORIGINAL, self.images)
        run = self.drawing.run(self.original, self.architecture, trajectory_prompts)
        self.calls = record_teacher(
            run,
            count=trajectory_prompts * 2 * run.steps,
            progress=lambda done, total, _: self.progress("record denoiser", done, total, ORIGINAL),
        )

    def variant(self, candidate: Candidate) -> Variant:
        """Everything about one variant but its layer errors; the pipeline is let go before this returns."""
        label, denoiser = candidate.label, self.architecture.denoiser
        sizes = inspect(candidate.folder)
        if sizes["bits_per_weight"] is None:
            raise VQCompressError(
                f"{candidate.folder} has no quantized layers; compare compressed folders with the original"
            )
        pipeline = self._open(candidate.folder)
        self.packed[label] = packed_weights(pipeline, self.architecture)
        images, seconds = draw(pipeline, self.architecture, self.drawing, self._step(f"draw {label}", ""))
        energies = replay(self._module(pipeline), self.calls, self._step(f"replay {label}", ""))
        costs = component_costs(
            self.original,
            pipeline,
            self.architecture,
            self.drawing,
            self.images,
            sizes["components"],
            self._step(f"components of {label}", ""),
        )
        del pipeline
        gc.collect()
        nbytes = weight_bytes(candidate.folder / denoiser)
        records = read_layer_table(candidate.folder)
        return Variant(
            label=label,
            method=candidate.method,
            scheme=candidate.scheme,
            dense_layers=tuple(record.layer for record in records if record.format == "dense"),
            undersampled_layers=tuple(record.layer for record in records if record.is_undersampled),
            experts=expert_uses(records),
            bits_per_weight=sizes["bits_per_weight"],
            denoiser_bits=8 * nbytes / self._denoiser_weights(),
            denoiser_bytes=nbytes,
            folder_bytes=sizes["bytes"],
            denoiser_error=denoiser_error(energies),
            error_by_timestep=error_by_timestep(energies),
            layer_errors=(),
            **image_fidelity(images, self.images),
            time_ratio=seconds / self.seconds,
            alignment=self._judged(label, images),
            components=costs,
        )

    def layer_errors(self, layer_prompts: int):
        """Label -> layer errors, from one pass over the original."""
        run = self.drawing.run(self.original, self.architecture, layer_prompts) if layer_prompts else None
        step = self._step("layer errors", "")
        return layer_errors(self.original, self.architecture, self.packed, run, step)

    def original_row(self) -> Original:
        """Sizes on disk where the original came from a folder, else those of its 16-bit weights."""
        folder = Path(str(getattr(self.original, "name_or_path", None) or ""))
        weights = self._denoiser_weights()
        known = (folder / "model_index.json").is_file()
        return Original(
            denoiser_bytes=weight_bytes(folder / self.architecture.denoiser) if known else 2 * weights,
            folder_bytes=pipeline_bytes(folder) if known else 0,
            denoiser_weights=weights,
            seconds_per_image=self.seconds,
            alignment=self.alignment,
        )

    def settings(self, prompt_source: str, trajectory_prompts: int, layer_prompts: int) -> Settings:
        """The conditions, for the record."""
        shown = min(layer_prompts, len(self.drawing.prompts))
        moments = f"the second moments of its inputs while the original drew {shown} of the images"
        return Settings(
            prompts=self.drawing.prompts,
            prompt_source=prompt_source,
            seed=self.drawing.seed,
            steps=self.drawing.sampling.steps,
            guidance=self.drawing.sampling.guidance,
            trajectory_prompts=min(trajectory_prompts, len(self.drawing.prompts)),
            denoiser_calls=len(self.calls),
            layer_inputs=moments if layer_prompts else "all inputs taken as equally large and independent",
            versions={package: version(package) for package in VERSIONS_OF},
        )

    def _open(self, folder: Path) -> DiffusionPipeline:
        module = self._module(self.original)
        pipeline: Any = load(folder, dtype=module.dtype)
        return pipeline.to(module.device)

    def _module(self, pipeline: DiffusionPipeline):
        return self.architecture.module(pipeline, self.architecture.denoiser)

    def _denoiser_weights(self) -> int:
        return sum(parameter.numel() for parameter in self._module(self.original).parameters())

    def _judged(self, label: str, images: Tensor) -> dict[str, Share]:
        """Keep the first images for the page, and the judge's answers on all."""
        self.pictures[label] = tuple(to_png(image) for image in images[:PICTURED])
        if self.judge is None:
            return {}
        answers = [self.judge(to_picture(i), p) for i, p in zip(images, self.drawing.prompts, strict=True)]
        return {question: Share(**share) for question, share in alignment(answers).items()}

    def _step(self, stage: str, detail: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(stage, done, total, detail)


def _name_of(pipeline: DiffusionPipeline) -> str:
    return Path(str(getattr(pipeline, "name_or_path", None) or type(pipeline).__name__)).name
