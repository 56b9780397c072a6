"""A comparison from names: the model's, and those of compressed folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from pkgutil import resolve_name

from diffusers import DiffusionPipeline

from vqcompress.architectures import Architecture, architecture_of, open_pipeline
from vqcompress.calibration.prompts import given_prompts, load_prompts
from vqcompress.checkpoint.origin import check_files
from vqcompress.disk import check_folder_target
from vqcompress.embedded import EMBEDDED
from vqcompress.errors import RecipeError
from vqcompress.folder_files import StrPath
from vqcompress.peers import peer_named
from vqcompress.placement import Placement, place
from vqcompress.progress import Progress, one_step, watched
from vqcompress.reports.bench import MADE_FROM, compare_candidates
from vqcompress.reports.candidate import Candidate, candidate_at, with_own_labels
from vqcompress.reports.comparison import Comparison
from vqcompress.reports.evaluation import EvaluationConfig, EvaluationSet
from vqcompress.reports.write import write_report

HELD_OUT = {"general": "general_heldout"}
"""Calibration prompt set -> the set for evaluation, where that is another one."""


def compare(
    original: StrPath | DiffusionPipeline,
    folders: StrPath | Sequence[StrPath],
    *,
    peers: Sequence[str] = (),
    prompts: StrPath | Sequence[str] | None = None,
    count: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int | None = None,
    config: EvaluationConfig | None = None,
    progress: Progress | bool | None = None,
    device: str | Placement | None = None,
    dtype: str | None = None,
    offload: str | None = None,
) -> Comparison:
    """Compare compressed ``folders``, one or several, with the ``original`` that they were made from.

    ``original`` is a name, a Hub id, a folder, a file, or a pipeline, which stays where it is. ``peers`` are names of
    other packages' formats (`vqcompress.peers`), refused before anything runs if unknown. ``prompts``: a prompt set, a
    file or a list of texts; by default a set that the model was not calibrated on. ``count`` images are drawn, the
    first from ``seed``, in ``steps`` steps at ``guidance``; these win over ``config``, which says more. Images of the
    embedded models are checked against their captions. ``progress`` as in `vqcompress.quantize`; ``device``, ``dtype``
    and ``offload`` say where all of them run, see `Placement`. Raises a `VQCompressError` for whatever a user can fix.
    """
    config = _config(config or EvaluationConfig(), count, steps, guidance, seed)
    asked = [peer_named(name) for name in dict.fromkeys(peers)]
    listed = [folders] if isinstance(folders, str | PathLike) else folders
    candidates = with_own_labels([candidate_at(folder) for folder in listed])
    _check_files(original, candidates)
    clock = watched(progress)
    with one_step(clock, "open", _name(original) or ""):
        pipeline, placement = _opened(original, device, dtype, offload)
    architecture = architecture_of(pipeline)
    return compare_candidates(
        pipeline,
        architecture,
        candidates,
        evaluation_set(architecture, prompts, config.count),
        config,
        peers=asked,
        name=_name(original),
        progress=clock,
        placement=placement,
    )


def _check_files(original: StrPath | DiffusionPipeline, candidates: Sequence[Candidate]) -> None:
    """What the files of folders tell, before the original is opened."""
    if isinstance(original, DiffusionPipeline):
        return
    known = EMBEDDED.get(str(original))
    for candidate in candidates:
        check_files(candidate.folder, known.path if known else Path(original), _name(original) or "", MADE_FROM)


def _config(
    config: EvaluationConfig, count: int | None, steps: int | None, guidance: float | None, seed: int | None
) -> EvaluationConfig:
    sampling = config.sampling
    sampling = replace(
        sampling,
        steps=sampling.steps if steps is None else steps,
        guidance=sampling.guidance if guidance is None else guidance,
    )
    return replace(
        config,
        count=config.count if count is None else count,
        seed=config.seed if seed is None else seed,
        sampling=sampling,
    )


def _opened(
    original: StrPath | DiffusionPipeline,
    device: str | Placement | None,
    dtype: str | None,
    offload: str | None,
) -> tuple[DiffusionPipeline, Placement | None]:
    """The original, placed; one that is passed in stays where it is."""
    if isinstance(original, DiffusionPipeline):
        if (device, dtype, offload) != (None, None, None):
            raise RecipeError("a pipeline that is passed in stays where it is: leave device, dtype and offload out")
        return original, None
    placement = Placement.parse(device, dtype, offload)
    pipeline = open_pipeline(original, dtype=placement.opening_dtype)
    return pipeline, place(pipeline, placement)


def _name(original: StrPath | DiffusionPipeline) -> str | None:
    if isinstance(original, DiffusionPipeline):
        return None
    return Path(original).name if "/" in str(original) else str(original)


def report(
    original: StrPath | DiffusionPipeline,
    folders: StrPath | Sequence[StrPath],
    output: StrPath = "out/report",
    *,
    peers: Sequence[str] = (),
    prompts: StrPath | Sequence[str] | None = None,
    count: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int | None = None,
    config: EvaluationConfig | None = None,
    progress: Progress | bool | None = None,
    device: str | Placement | None = None,
    dtype: str | None = None,
    offload: str | None = None,
) -> Comparison:
    """`compare`, and its report in the folder ``output``: report.html (one self-contained file), report.json,
    report.md and grid.png."""
    check_folder_target(Path(output))
    comparison = compare(
        original,
        folders,
        peers=peers,
        prompts=prompts,
        count=count,
        steps=steps,
        guidance=guidance,
        seed=seed,
        config=config,
        progress=progress,
        device=device,
        dtype=dtype,
        offload=offload,
    )
    write_report(comparison, output)
    return comparison


def evaluation_set(architecture: Architecture, prompts: StrPath | Sequence[str] | None, count: int) -> EvaluationSet:
    """The prompts of the set or file called ``prompts``, or these themselves where they are a list; by default
    ``count`` or more that calibration does not see.

    An embedded model's judge comes with them, if it can read every prompt.
    """
    model = EMBEDDED.get(architecture.name)
    if prompts is None and model and model.held_out:
        texts, source = tuple(resolve_name(model.held_out)(count)), f"held-out captions of {architecture.name}"
    else:
        usual = HELD_OUT.get(architecture.prompt_set, architecture.prompt_set)
        found = load_prompts(prompts or usual) if isinstance(prompts, str | PathLike | None) else given_prompts(prompts)
        texts, source = found.prompts, f"set {Path(found.name).name}, SHA-256 {found.sha256[:12]}"
    return EvaluationSet(texts, source, resolve_name(model.judge)(texts) if model else None)
