"""A comparison from names: the model's, and those of compressed folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name

from vqcompress.architectures import Architecture, architecture_of, open_pipeline
from vqcompress.calibration.prompts import load_prompts
from vqcompress.embedded import EMBEDDED
from vqcompress.peers import peer_named
from vqcompress.placement import Placement, place
from vqcompress.progress import Progress
from vqcompress.reports.bench import compare
from vqcompress.reports.candidate import candidate_at, with_own_labels
from vqcompress.reports.comparison import Comparison
from vqcompress.reports.evaluation import EvaluationConfig, EvaluationSet
from vqcompress.reports.write import write_report

HELD_OUT = {"general": "general_heldout"}
"""Calibration prompt set -> the set for evaluation, where that is another one."""


def compare_folders(
    original: str,
    folders: Sequence[str | Path],
    *,
    peers: Sequence[str] = (),
    prompts: str | None = None,
    config: EvaluationConfig | None = None,
    progress: Progress | None = None,
    device: str | Placement | None = None,
    dtype: str | None = None,
    offload: str | None = None,
) -> Comparison:
    """Compare compressed ``folders`` with the model called ``original`` (alias, Hub id, folder or file).

    ``peers`` are names of other packages' formats (`vqcompress.peers`), refused before anything runs if unknown.
    ``prompts`` names a prompt set or file; by default one that the model was not calibrated on. Images of the embedded
    models are checked against their captions. ``device``, ``dtype`` and ``offload`` say where all of them run, see
    `Placement`. See `compare` for the rest.
    """
    placement = Placement.parse(device, dtype, offload)
    config = config or EvaluationConfig()
    asked = [peer_named(name) for name in dict.fromkeys(peers)]
    candidates = with_own_labels([candidate_at(folder) for folder in folders])
    pipeline = open_pipeline(original, dtype=placement.opening_dtype)
    architecture = architecture_of(pipeline)
    return compare(
        pipeline,
        architecture,
        candidates,
        evaluation_set(architecture, prompts, config.count),
        config,
        peers=asked,
        name=original if "/" not in original else Path(original).name,
        progress=progress,
        placement=place(pipeline, placement),
    )


def report(
    original: str,
    folders: Sequence[str | Path],
    output: str | Path = "out/report",
    *,
    peers: Sequence[str] = (),
    prompts: str | None = None,
    config: EvaluationConfig | None = None,
    progress: Progress | None = None,
    device: str | Placement | None = None,
    dtype: str | None = None,
    offload: str | None = None,
) -> Comparison:
    """`compare_folders`, and its report in the folder ``output``: report.html (one self-contained file), report.json,
    report.md and grid.png."""
    comparison = compare_folders(
        original,
        folders,
        peers=peers,
        prompts=prompts,
        config=config,
        progress=progress,
        device=device,
        dtype=dtype,
        offload=offload,
    )
    write_report(comparison, output)
    return comparison


def evaluation_set(architecture: Architecture, prompts: str | None, count: int) -> EvaluationSet:
    """The prompts of the set or file called ``prompts``; by default ``count`` or more that calibration does not see.

    An embedded model's judge comes with them, if it can read every prompt.
    """
    model = EMBEDDED.get(architecture.name)
    if prompts is None and model and model.held_out:
        texts, source = tuple(resolve_name(model.held_out)(count)), f"held-out captions of {architecture.name}"
    else:
        found = load_prompts(prompts or HELD_OUT.get(architecture.prompt_set, architecture.prompt_set))
        texts, source = found.prompts, f"set {Path(found.name).name}, SHA-256 {found.sha256[:12]}"
    return EvaluationSet(texts, source, resolve_name(model.judge)(texts) if model else None)
