"""Fine-tune a compressed folder that exists: `vqcompress finetune DIR`, alone or under `torchrun`."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from vqcompress.architectures import Architecture, Pipeline, architecture_of, open_pipeline
from vqcompress.calibration.prompts import choose_diverse, load_prompts
from vqcompress.checkpoint import load, save_pipeline
from vqcompress.checkpoint.layer_table import read_layer_table
from vqcompress.checkpoint.manifest import read_manifest
from vqcompress.checkpoint.publication import check_target
from vqcompress.checkpoint.saving import RECIPE_NAME
from vqcompress.errors import CheckpointError, VQCompressError
from vqcompress.finetune import (
    DistillationData,
    Outcome,
    open_requantization,
    plan_requantization,
    record_distillation,
    tune_whole,
)
from vqcompress.finetune.cost import cost
from vqcompress.finetune.dataset import open_distillation
from vqcompress.layers import vq_layers
from vqcompress.progress import Progress, silent
from vqcompress.recipe import Recipe
from vqcompress.run_store import RunStore
from vqcompress.workers import Workers, joined_workers


def finetune(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    model: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **changes: Any,
) -> tuple[Path, Outcome]:
    """Let the denoiser in ``folder`` learn from the model that it was made of; write ``output`` (None: ``folder`` itself).

    ``model`` is that original, by default the one that the folder's recipe names; ``changes`` are keys of `Training`. Prompts are
    those of the recipe's set that calibration did not use. A run that was stopped goes on with the same call. Returns the
    folder written and what was gained. Raises a `VQCompressError` for whatever a user can mend.
    """
    folder = Path(folder)
    output = folder if output is None else Path(output)
    check_target(output, overwrite or output == folder)
    recipe = tuning_recipe(folder, model, changes)
    tell = progress or silent
    work = output.with_name(output.name + ".finetune.partial")
    with joined_workers() as workers:
        store = _store(work, folder, recipe) if workers.is_main_process else None
        with store or nullcontext():
            distillation = _distillation(recipe, work, store, workers, tell if workers.is_main_process else silent)
            pipeline = load(folder)
            architecture = architecture_of(pipeline)
            denoiser: nn.Module = architecture.module(pipeline, architecture.denoiser)
            guidance, scheduler = _guidance(recipe, architecture), getattr(pipeline, "scheduler", None)
            if store is not None:
                plan_requantization(
                    denoiser, lambda: _original(recipe), distillation, recipe, guidance, scheduler, store
                )
            workers.barrier()
            outcome = tune_whole(
                denoiser, distillation, work, store, training=recipe.training, guidance=guidance, scheduler=scheduler,
                seed=recipe.seed, workers=workers, requantization=open_requantization(work, recipe),
                progress=tell if workers.is_main_process else silent,
            )  # fmt: skip
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
    return asdict(cost(pipeline, architecture, prompt, training=recipe.training, calibration=recipe.calibration))


def tuning_recipe(folder: Path, model: str | None, changes: dict[str, Any]) -> Recipe:
    """The folder's recipe with fine-tuning asked for and ``changes`` applied to its `Training`."""
    path = folder / RECIPE_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {RECIPE_NAME}: it is no folder that vqcompress wrote")
    recipe = Recipe.read(path)
    data = recipe.to_dict()
    data |= {"finetune": "full", "training": {**data["training"], **changes}, "model": model or recipe.model}
    return Recipe.parse(data)


def _store(work: Path, folder: Path, recipe: Recipe) -> RunStore:
    manifest = {name: entry["sha256"] for name, entry in read_manifest(folder).items()}
    return RunStore(work, {"version": version("vqcompress"), "recipe": recipe.to_dict(), "folder": manifest})


def _distillation(
    recipe: Recipe, work: Path, store: RunStore | None, workers: Workers, progress: Progress
) -> DistillationData:
    """Recorded by the first process, read by all; the original is let go before the packed model is opened."""
    if store is not None:
        teacher: Pipeline = open_pipeline(recipe.model)
        architecture = architecture_of(teacher)
        if vq_layers(architecture.module(teacher, architecture.denoiser)):
            raise VQCompressError(f"{recipe.model} is compressed itself; name the original model with --model")
        prompts = load_prompts(recipe.calibration.prompts or architecture.prompt_set).prompts
        used = choose_diverse(prompts, recipe.calibration.count, recipe.seed)
        record_distillation(
            teacher, architecture, prompts, used, store, training=recipe.training, calibration=recipe.calibration,
            seed=recipe.seed, progress=progress,
        )  # fmt: skip
        del teacher
    workers.barrier()
    return open_distillation(work)


def _original(recipe: Recipe) -> nn.Module:
    pipeline: Pipeline = open_pipeline(recipe.model)
    architecture = architecture_of(pipeline)
    return architecture.module(pipeline, architecture.denoiser)


def _guidance(recipe: Recipe, architecture: Architecture) -> float:
    return recipe.calibration.sampling.resolve(architecture.defaults).guidance


def _check_kinship(outcome: Outcome, folder: Path, recipe: Recipe) -> None:
    if outcome.before > 1:
        raise VQCompressError(
            f"the outputs of {folder} have nothing in common with those of {recipe.model} (relative error {outcome.before:.2g}); "
            "it was made from another model: name that one with --model"
        )
