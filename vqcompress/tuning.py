"""Fine-tune a compressed folder that exists: `vqcompress finetune DIR`, alone or under `torchrun`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from vqcompress.architectures import Architecture, Pipeline, architecture_of, open_pipeline
from vqcompress.architectures.source_weights import json_hash
from vqcompress.calibration.prompts import choose_diverse, load_prompts
from vqcompress.checkpoint import check_hashes, load, save_pipeline
from vqcompress.checkpoint.layer_table import read_layer_table
from vqcompress.checkpoint.manifest import read_manifest
from vqcompress.checkpoint.origin import check_network
from vqcompress.checkpoint.publication import check_target
from vqcompress.checkpoint.reopening import check_reopens
from vqcompress.checkpoint.saving import RECIPE_NAME
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import ArchitectureError, CalibrationError, CheckpointError, VQCompressError
from vqcompress.finetuning import (
    Outcome,
    Teacher,
    TuningContext,
    open_distillation,
    plan_requantization,
    record_distillation,
    tune_whole,
)
from vqcompress.finetuning.cost import cost
from vqcompress.folder_files import StrPath
from vqcompress.layers import vq_layers
from vqcompress.placement import Placement, place
from vqcompress.progress import Progress, one_step, silent, watched
from vqcompress.recipe import FORMER_TRAINING_NAMES, Recipe, current_names
from vqcompress.results import TunedFolder
from vqcompress.run_signature import StageInputs
from vqcompress.run_store import RunStore
from vqcompress.stages.journal import Journal
from vqcompress.stages.run import open_store
from vqcompress.stages.signature import code_hash, source_of
from vqcompress.workers import Workers, joined_workers


def finetune(
    folder: StrPath,
    output: StrPath | None = None,
    *,
    model: StrPath | None = None,
    prompts: StrPath | None = None,
    preset: str | None = None,
    steps: int | None = None,
    rate: float | None = None,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
    verified: bool = True,
    device: str | Placement | None = None,
    dtype: str | None = None,
    offload: str | None = None,
    **other_keys: Any,
) -> TunedFolder:
    """Fine-tune the denoiser in ``folder`` on outputs of the original model; write ``output`` (None: ``folder``
    itself).

    ``model`` is that original and ``prompts`` a prompt set, by default those that the folder's recipe names: a local
    model and a file of prompts must be given, because a folder says nothing of the machine that it was made on.
    ``preset`` ("fast", "default", "best"), ``steps``, ``rate``, and whatever ``training`` and ``other_keys`` have, are
    keys of `Training` that replace the recipe's. ``progress`` as in `vqcompress.quantize`. Prompts that calibration
    used are left out. A run that was stopped goes on with the same call. Without ``verified``, the folder is not
    compared with its manifest. ``device``, ``dtype`` and ``offload`` say where the original runs, see `Placement`, and
    where the compressed model learns, in float32 or what `Training.dtype` says. Returns the folder written, with
    held-out losses before and after. Raises a `VQCompressError` for whatever a user can fix.
    """
    folder, placement = Path(folder), Placement.parse(device, dtype, offload)
    output = folder if output is None else Path(output)
    given = {"preset": preset, "steps": steps, "rate": rate, **(training or {}), **other_keys}
    changes = {key: value for key, value in given.items() if value is not None}
    original = None if model is None else str(model)
    recipe = tuning_recipe(folder, original, changes, None if prompts is None else str(prompts))
    clock = watched(progress)
    journal = Journal(output.with_name(output.name + ".finetune.partial"), output, {"finetune": recipe.to_dict()})
    with joined_workers() as workers:
        settled = workers.all_gather(journal.settle() if workers.is_main_process else None)[0]
        if settled is not None:
            return _described(output, _outcome(settled["result"]), clock.seconds)
        check_target(output, overwrite or output == folder)
        if verified:
            check_hashes(folder)  # before anything is recorded, which can take hours
        tell = clock if workers.is_main_process else silent
        with _tuning_store(journal.work, folder, recipe, workers, tell, placement) as store:
            outcome = _tune(folder, output, recipe, store, journal, workers, tell, verified, placement)
        if workers.is_main_process:
            journal.clear()
        workers.barrier()
    return _described(output, outcome, clock.seconds)


def _described(output: Path, outcome: Outcome, seconds: Mapping[str, float]) -> TunedFolder:
    return TunedFolder(output, outcome.before, outcome.after, outcome.steps, outcome.best_step, dict(seconds))


def _tune(
    folder: Path,
    output: Path,
    recipe: Recipe,
    store: RunStore,
    journal: Journal,
    workers: Workers,
    progress: Progress,
    verified: bool,
    placement: Placement,
) -> Outcome:
    """Train the denoiser in ``folder`` on what ``store`` has of the original, in all processes; the first publishes."""
    distillation = open_distillation(store.folder)
    with one_step(progress, "open", folder.name):
        pipeline = load(folder, checked=verified)
        placement = place(pipeline, placement, gradients=True)
    architecture = architecture_of(pipeline)
    denoiser: nn.Module = architecture.module(pipeline, architecture.denoiser)
    context = TuningContext.of(pipeline, architecture, recipe, distillation, store, workers=workers, progress=progress)
    requantization = plan_requantization(denoiser, lambda: _dense_denoiser(recipe, placement), context)
    outcome = tune_whole(denoiser, context, requantization)
    _check_kinship(outcome, folder, recipe)
    if workers.is_main_process:
        one = _prompts(recipe, architecture)[:1]
        run = SamplingRun(pipeline, architecture, one, recipe.seed, recipe.calibration.sampling)

        def check(partial: Path) -> None:
            check_reopens(run, partial, placement=placement)
            journal.write(partial, asdict(outcome))

        save_pipeline(
            pipeline,
            output,
            recipe=recipe.to_dict(),
            layers=read_layer_table(folder),
            overwrite=True,
            before_publication=check,
        )
    return outcome


def tuning_cost(
    folder: StrPath,
    prompts: str | None = None,
    *,
    training: Mapping[str, Any] | None = None,
    verified: bool = True,
    device: str | Placement | None = None,
    dtype: str | None = None,
    offload: str | None = None,
) -> dict[str, Any]:
    """What `finetune` would need, measured on one step: bytes and seconds, see `vqcompress.finetuning.cost.Cost`.

    ``training``: keys of `Training` that replace the recipe's.
    """
    placement = Placement.parse(device, dtype, offload)
    recipe = tuning_recipe(Path(folder), None, dict(training or {}), prompts)
    pipeline = load(folder, checked=verified)
    place(pipeline, placement, gradients=True)
    architecture = architecture_of(pipeline)
    prompt = _prompts(recipe, architecture)[0]
    return asdict(cost(pipeline, architecture, recipe, prompt))


def tuning_recipe(folder: Path, model: str | None, changes: dict[str, Any], prompts: str | None = None) -> Recipe:
    """The folder's recipe with fine-tuning asked for, ``changes`` applied to its `Training`, and other ``prompts``."""
    path = folder / RECIPE_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {RECIPE_NAME}: it is no folder that vqcompress wrote")
    recipe = Recipe.read(path)
    data = recipe.to_dict()
    training = data["training"] | current_names(changes, FORMER_TRAINING_NAMES)
    data |= {"finetune": "full", "training": training, "model": model or recipe.model}
    data["calibration"] |= {"prompts": prompts or recipe.calibration.prompts}
    return Recipe.parse(data)


@contextmanager
def _tuning_store(
    work: Path, folder: Path, recipe: Recipe, workers: Workers, progress: Progress, placement: Placement
) -> Iterator[RunStore]:
    """The run's folder with the original's calls in it. The first process records them, and frees the original before
    the packed model is opened."""
    if not workers.is_main_process:
        with open_store(work, {}, workers) as store:
            workers.barrier()
            yield store
        return
    with one_step(progress, "open original", recipe.model):
        pipeline: Pipeline = _original(recipe, placement)
    architecture = architecture_of(pipeline)
    if vq_layers(architecture.module(pipeline, architecture.denoiser)):
        raise VQCompressError(f"{recipe.model} is compressed itself; name the original model with --model")
    denoiser = architecture.module(pipeline, architecture.denoiser)
    check_network(folder, denoiser, architecture.denoiser, recipe.model, "--model names the original")
    prompts = _prompts(recipe, architecture)
    source, note = source_of(recipe.model, pipeline, [work], placement.opening_dtype)
    place(pipeline, placement)
    with open_store(work, _inputs(folder, recipe, prompts, source), workers, note) as store:
        used = choose_diverse(prompts, recipe.calibration.count, recipe.seed)
        record_distillation(Teacher(pipeline, architecture, prompts, used), recipe, store, progress)
        del pipeline
        workers.barrier()
        yield store


def _inputs(folder: Path, recipe: Recipe, prompts: Sequence[str], source: Mapping[str, Any]) -> tuple[StageInputs, ...]:
    """What the original's calls depend on, and what training does."""
    manifest = {name: entry["sha256"] for name, entry in read_manifest(folder).items()}
    settings = {"recipe": recipe.to_dict(), "prompts": json_hash(prompts)}
    return (
        StageInputs(r"teacher\..*", settings, source),
        StageInputs(r"finetune\..*", settings, {**source, "folder": manifest, "code": code_hash()}),
    )


def _original(recipe: Recipe, placement: Placement) -> Pipeline:
    try:
        base = recipe.base if Path(recipe.model).expanduser().is_file() else None
        return open_pipeline(recipe.model, dtype=placement.opening_dtype, base=base)
    except ArchitectureError as error:
        raise ArchitectureError(f"{error}; --model names the original") from error


def _prompts(recipe: Recipe, architecture: Architecture) -> tuple[str, ...]:
    try:
        return load_prompts(recipe.calibration.prompts or architecture.prompt_set).prompts
    except CalibrationError as error:
        raise CalibrationError(f"{error}; name the prompt set with --prompts") from error


def _dense_denoiser(recipe: Recipe, placement: Placement) -> nn.Module:
    """The original, on the host."""
    pipeline: Pipeline = _original(recipe, placement)
    architecture = architecture_of(pipeline)
    return architecture.module(pipeline, architecture.denoiser)


def _outcome(entry: Mapping[str, Any]) -> Outcome:
    return Outcome(**{**entry, "history": tuple((step, loss) for step, loss in entry["history"])})


def _check_kinship(outcome: Outcome, folder: Path, recipe: Recipe) -> None:
    if outcome.before > 1:
        raise VQCompressError(
            f"{folder} does not fit {recipe.model} (the relative error of its outputs is {outcome.before:.2g}); "
            "it was made from another model: name that one with --model"
        )
