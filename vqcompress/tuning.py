"""Fine-tune a compressed folder that exists: `vqcompress finetune DIR`, alone or under `torchrun`."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from vqcompress.architectures import Pipeline, architecture_of, open_pipeline
from vqcompress.calibration.prompts import choose_diverse, load_prompts
from vqcompress.checkpoint import check_hashes, load, save_pipeline
from vqcompress.checkpoint.layer_table import read_layer_table
from vqcompress.checkpoint.manifest import read_manifest
from vqcompress.checkpoint.publication import check_target
from vqcompress.checkpoint.saving import RECIPE_NAME
from vqcompress.errors import CheckpointError, VQCompressError
from vqcompress.finetune import (
    DistillationData,
    Outcome,
    Teacher,
    TuningContext,
    open_distillation,
    plan_requantization,
    record_distillation,
    tune_whole,
)
from vqcompress.finetune.cost import cost
from vqcompress.layers import vq_layers
from vqcompress.progress import Progress, silent
from vqcompress.recipe import FORMER_TRAINING_NAMES, Recipe, current_names
from vqcompress.run_store import RunStore
from vqcompress.stages.run import open_store
from vqcompress.workers import Workers, joined_workers


def finetune(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    model: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    verified: bool = True,
    **changes: Any,
) -> tuple[Path, Outcome]:
    """Fine-tune the denoiser in ``folder`` on outputs of the original model; write ``output`` (None: ``folder``
    itself).

    ``model`` is that original, by default the one that the folder's recipe names; ``changes`` are keys of `Training`.
    Prompts are those of the recipe's set that calibration did not use. A run that was stopped goes on with the same
    call. Without ``verified``, the folder is not compared with its manifest. Returns the folder written, and held-out
    losses before and after. Raises a `VQCompressError` for whatever a user can fix.
    """
    folder = Path(folder)
    output = folder if output is None else Path(output)
    check_target(output, overwrite or output == folder)
    recipe = tuning_recipe(folder, model, changes)
    if verified:
        check_hashes(folder)  # before anything is recorded, which can take hours
    work = output.with_name(output.name + ".finetune.partial")
    with joined_workers() as workers:
        tell = progress if progress and workers.is_main_process else silent
        with open_store(work, _signature(folder, recipe), workers) as store:
            distillation = _distillation(recipe, store, workers, tell)
            pipeline = load(folder, checked=verified)
            architecture = architecture_of(pipeline)
            denoiser: nn.Module = architecture.module(pipeline, architecture.denoiser)
            context = TuningContext.of(
                pipeline, architecture, recipe, distillation, store, workers=workers, progress=tell
            )
            requantization = plan_requantization(denoiser, lambda: _dense_denoiser(recipe), context)
            outcome = tune_whole(denoiser, context, requantization)
            _check_kinship(outcome, folder, recipe)
            if workers.is_main_process:
                records = read_layer_table(folder)
                save_pipeline(pipeline, output, recipe=recipe.to_dict(), layers=records, overwrite=True)
        if workers.is_main_process:
            shutil.rmtree(work)
        workers.barrier()
    return output, outcome


def tuning_cost(folder: str | Path, **changes: Any) -> dict[str, Any]:
    """What `finetune` would need, measured on one step: bytes and seconds, see `vqcompress.finetune.cost.Cost`."""
    recipe = tuning_recipe(Path(folder), None, changes)
    pipeline = load(folder)
    architecture = architecture_of(pipeline)
    prompt = load_prompts(recipe.calibration.prompts or architecture.prompt_set).prompts[0]
    return asdict(cost(pipeline, architecture, recipe, prompt))


def tuning_recipe(folder: Path, model: str | None, changes: dict[str, Any]) -> Recipe:
    """The folder's recipe with fine-tuning asked for and ``changes`` applied to its `Training`."""
    path = folder / RECIPE_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {RECIPE_NAME}: it is no folder that vqcompress wrote")
    recipe = Recipe.read(path)
    data = recipe.to_dict()
    training = data["training"] | current_names(changes, FORMER_TRAINING_NAMES)
    data |= {"finetune": "full", "training": training, "model": model or recipe.model}
    return Recipe.parse(data)


def _signature(folder: Path, recipe: Recipe) -> dict[str, Any]:
    manifest = {name: entry["sha256"] for name, entry in read_manifest(folder).items()}
    return {"version": version("vqcompress"), "recipe": recipe.to_dict(), "folder": manifest}


def _distillation(recipe: Recipe, store: RunStore, workers: Workers, progress: Progress) -> DistillationData:
    """Recorded by the first process, read by all; the original is freed before the packed model is opened."""
    if workers.is_main_process:
        pipeline: Pipeline = open_pipeline(recipe.model)
        architecture = architecture_of(pipeline)
        if vq_layers(architecture.module(pipeline, architecture.denoiser)):
            raise VQCompressError(f"{recipe.model} is compressed itself; name the original model with --model")
        prompts = load_prompts(recipe.calibration.prompts or architecture.prompt_set).prompts
        used = choose_diverse(prompts, recipe.calibration.count, recipe.seed)
        record_distillation(Teacher(pipeline, architecture, prompts, used), recipe, store, progress)
        del pipeline
    workers.barrier()
    return open_distillation(store.folder)


def _dense_denoiser(recipe: Recipe) -> nn.Module:
    pipeline: Pipeline = open_pipeline(recipe.model)
    architecture = architecture_of(pipeline)
    return architecture.module(pipeline, architecture.denoiser)


def _check_kinship(outcome: Outcome, folder: Path, recipe: Recipe) -> None:
    if outcome.before > 1:
        raise VQCompressError(
            f"{folder} does not fit {recipe.model} (the relative error of its outputs is {outcome.before:.2g}); "
            "it was made from another model: name that one with --model"
        )
