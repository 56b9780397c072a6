"""End-to-end compression: a pipeline goes in, a packed folder comes out.

`Recipe` -> architecture -> moments -> bits per layer -> packed weights -> layers swapped in -> folder. Every stage
keeps its results in a run folder beside the output, so a run that was stopped goes on from there with the same command.
Under `torchrun` several processes share the batches of calibration and the layers; the first alone publishes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from vqcompress.architectures import Architecture, architecture_of, open_pipeline
from vqcompress.architectures.call_inputs import drawn_inputs
from vqcompress.architectures.known_names import sampled_as_published
from vqcompress.architectures.modular import plain_pipeline
from vqcompress.architectures.narrow_weights import hold_narrow
from vqcompress.calibration.prompts import PromptSet, given_prompts, load_prompts
from vqcompress.checkpoint import LayerRecord, inspect, save_pipeline
from vqcompress.checkpoint.publication import check_name, check_target
from vqcompress.checkpoint.reopening import check_reopens
from vqcompress.errors import RecipeError
from vqcompress.expert_stacks import unstack
from vqcompress.finetuning import Teacher, TuningContext, prepare_distillation, swap_and_tune
from vqcompress.folder_files import StrPath
from vqcompress.layers import swap
from vqcompress.matrix_view import to_matrix
from vqcompress.methods import METHODS
from vqcompress.placement import Placement, place, take_back
from vqcompress.progress import Progress, one_step, silent, watched
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.quantizers import quantizer_of, settings_for
from vqcompress.recipe import Recipe, current_names, values_of_preset
from vqcompress.recipe_presets import SECTIONS, layered
from vqcompress.results import CompressedFolder
from vqcompress.run_store import check_folder
from vqcompress.stages.budget import allocate, allocate_together
from vqcompress.stages.disk_space import check_disk_space
from vqcompress.stages.encoding import encode_all, encoded_error, encoded_gap, shared_codebooks, why_unfit
from vqcompress.stages.importance import importance_of_layers
from vqcompress.stages.journal import Journal
from vqcompress.stages.output_recording import record_outputs
from vqcompress.stages.plan import plan_components
from vqcompress.stages.prompt_count import fitted_count
from vqcompress.stages.recording import record_component, recorded_group
from vqcompress.stages.run import Run, dense_bits, open_store
from vqcompress.stages.sequential import encode_in_order, encodes_in_order
from vqcompress.stages.signature import recording_inputs, run_inputs, source_of
from vqcompress.workers import Workers, expected_workers, joined_workers

LEFT_DENSE = "its error costs the output more than its bits do: left dense by the model's budget"


def quantize(
    model: StrPath | DiffusionPipeline,
    output: StrPath,
    *,
    recipe: Recipe | Mapping[str, Any] | StrPath | None = None,
    preset: str | None = None,
    bits: float | None = None,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    budget: str | None = None,
    components: Sequence[str] | None = None,
    ignore: Mapping[str, str] | None = None,
    prompts: StrPath | Sequence[str] | None = None,
    calibration: Mapping[str, Any] | None = None,
    output_feedback: bool | None = None,
    finetune: str | None = None,
    training: Mapping[str, Any] | None = None,
    seed: int | None = None,
    base: str | None = None,
    overwrite: bool = False,
    calibration_folder: StrPath | None = None,
    progress: Progress | bool | None = None,
    device: str | Placement | None = None,
    dtype: str | None = None,
    offload: str | None = None,
    **other_keys: Any,
) -> CompressedFolder:
    """Compress ``model`` (alias, Hub id, folder, single file, or a loaded pipeline) into the folder ``output``.

    The arguments from ``preset`` to ``base``, and ``other_keys``, are keys of `Recipe`; those that are given replace
    those of ``recipe`` (a `Recipe`, a mapping, or the path of a YAML file), in the mappings ``settings``,
    ``calibration`` and ``training`` key by key. ``prompts``, for calibration: the name of a set, a file, or a list of
    texts. ``progress``: a `Progress`, True for bars, False for none; by default bars in a terminal or a notebook.

    ``calibration_folder`` keeps what calibration recorded for runs with other methods and bit widths; without it, the
    recordings are deleted with the run's own folder. A pipeline that is passed in is compressed in place; of a modular
    one, the networks are, and the folder is that of the plain class (`architectures.modular`). Returns the folder,
    which can be used as a path and which ``DiffusionPipeline.from_pretrained`` loads. Raises a `VQCompressError` for
    whatever a user can fix, before anything is written at ``output``.

    ``device``, ``dtype`` and ``offload`` say where the pipeline computes, see `Placement`: by default on the
    accelerator, where there is one, in the checkpoint's dtype. A pipeline that is passed in stays where it is unless a
    ``device`` is given, and in its dtype. Codes are searched on the host's cores.
    """
    model = str(model) if isinstance(model, str | PathLike) else plain_pipeline(model)
    output, placement = Path(output), _placement_of(model, device, dtype, offload)
    texts, prompts = _given_prompts(prompts)
    keys = {
        "preset": preset, "bits": bits, "method": method, "settings": settings, "budget": budget,
        "components": components, "ignore": ignore, "calibration": calibration, "output_feedback": output_feedback,
        "finetune": finetune, "training": training, "seed": seed, "base": base, **other_keys,
    }  # fmt: skip
    changes = {key: value for key, value in keys.items() if value is not None}
    if prompts is not None:
        changes["calibration"] = {**changes.get("calibration", {}), "prompts": prompts}
    recipe = effective_recipe(model, recipe_of(recipe, model, changes), changes)
    clock = watched(progress)
    quantizer_of(recipe.method).check(settings_for(recipe.method, recipe.settings))
    _check_workers(recipe)
    _check_method(recipe)
    _check_dtype(recipe, placement)
    check_name(output)
    if calibration_folder is not None:
        check_folder(Path(calibration_folder))
    journal = Journal(output.with_name(output.name + ".partial"), output, {"recipe": recipe.to_dict()})
    with joined_workers() as workers:
        settled = workers.all_gather(workers.is_main_process and journal.settle() is not None)[0]
        if not (settled and isinstance(model, str)):
            check_target(output, overwrite)
            with ExitStack() as held:
                folder = None if calibration_folder is None else Path(calibration_folder)
                run = _open_run(held, model, recipe, placement, journal.work, folder, workers, clock, texts)
                if workers.is_main_process:
                    check_disk_space(run, output)
                _compress(run, output, overwrite, journal)
            if workers.is_main_process:
                journal.clear()
    return _described(output, clock.seconds)


def recipe_of(
    recipe: Recipe | Mapping[str, Any] | StrPath | None, model: str | DiffusionPipeline, changes: Mapping[str, Any]
) -> Recipe | None:
    """``recipe``, read if it is the path of a YAML file. Raises `RecipeError` for what is no recipe.

    Single values of ``changes`` come before the recipe's key ``preset`` is read: it sets what their method has.
    """
    if recipe is None or isinstance(recipe, Recipe):
        return recipe
    single = {key: value for key, value in current_names(changes).items() if key not in (*SECTIONS, "preset")}
    if isinstance(recipe, str | PathLike):
        return Recipe.read(recipe, for_model=model if isinstance(model, str) else None, **_named(model), **single)
    if isinstance(recipe, Mapping):
        return Recipe.parse({**_named(model), **current_names(recipe), **single})
    raise RecipeError(f"recipe: a Recipe, a mapping or a path is wanted, not {type(recipe).__name__}")


def _named(model: str | DiffusionPipeline) -> dict[str, str]:
    return {"model": model if isinstance(model, str) else type(model).__name__}


def _given_prompts(prompts: StrPath | Sequence[str] | None) -> tuple[PromptSet | None, str | None]:
    """The set that a list of texts makes, or the name of one. Raises `RecipeError` for neither."""
    if prompts is None or isinstance(prompts, str | PathLike):
        return None, None if prompts is None else str(prompts)
    return given_prompts(prompts), None


def _described(output: Path, seconds: Mapping[str, float]) -> CompressedFolder:
    found = inspect(output)
    layers = sum(part["packed_layers"] for part in found["components"].values())
    return CompressedFolder(output, found["bits_per_weight"], found["bytes"], layers, dict(seconds))


def _open_run(
    held: ExitStack,
    model: str | DiffusionPipeline,
    recipe: Recipe,
    placement: Placement,
    work: Path,
    calibration_folder: Path | None,
    workers: Workers,
    progress: Progress,
    named: PromptSet | None,
) -> Run:
    """The run, its folders held by ``held``. ``named``: prompts in place of those that the recipe names."""
    if named is None and recipe.calibration.prompts is not None:
        named = load_prompts(recipe.calibration.prompts)
    dtype = torch.float32 if recipe.finetune != "none" else placement.opening_dtype
    narrow = isinstance(model, str) and recipe.finetune == "none" and dtype == torch.float32
    report = progress if workers.is_main_process else silent
    with one_step(report, "open", recipe.model):
        pipeline = _opened(model, recipe, dtype, narrow)
    architecture = sampled_as_published(architecture_of(pipeline), model)
    prompts = named or load_prompts(architecture.prompt_set)
    recipe = fitted_count(recipe, prompts)
    layers, ignored = plan_components(recipe, pipeline, architecture)
    _check_images(recipe, pipeline)
    _check_finetuning(recipe, architecture)
    known = [folder for folder in (work, calibration_folder) if folder]
    source, note = source_of(model, pipeline, known, dtype) if workers.is_main_process else ({}, None)
    for component, names in layers.items():
        unstack(architecture.module(pipeline, component), names)
    if narrow:
        for denoiser in architecture.denoisers:
            hold_narrow(architecture.module(pipeline, denoiser), layers.get(denoiser, ()))
    depends = (recipe, prompts, source, architecture.denoisers)
    store = recordings = held.enter_context(open_store(work, run_inputs(*depends), workers, note))
    if calibration_folder:
        recordings = held.enter_context(open_store(calibration_folder, recording_inputs(*depends), workers, note))
    placement = place(pipeline, placement, gradients=True)
    held.callback(take_back, pipeline)
    return Run(recipe, pipeline, architecture, store, recordings, prompts, report, layers, ignored, workers, placement)


def _placement_of(
    model: str | DiffusionPipeline, device: str | Placement | None, dtype: str | None, offload: str | None
) -> Placement:
    if isinstance(model, str):
        return Placement.parse(device, dtype, offload)
    if dtype is not None:
        raise RecipeError("a pipeline that is passed in computes in its own dtype: leave dtype out, or cast it before")
    if device is not None:
        return Placement.parse(device, None, offload)
    if offload not in (None, "none", "auto"):
        raise RecipeError("offload needs a device to load to: give device='cuda', or another that is here")
    return Placement.of(architecture_of(model).module(model, architecture_of(model).denoiser))


def _opened(model: str | DiffusionPipeline, recipe: Recipe, dtype: torch.dtype, narrow: bool) -> DiffusionPipeline:
    if isinstance(model, str):
        return open_pipeline(model, dtype=dtype, narrow=narrow, base=recipe.base)
    if recipe.base is not None:
        raise RecipeError("base is for a model that is a single file; this pipeline has all its parts, leave base out")
    return model


def _compress(run: Run, output: Path, overwrite: bool, journal: Journal) -> None:
    """All stages of ``run``, in every process; the first publishes."""
    chosen = () if run.recipe.finetune == "none" else run.chosen_prompts(run.recipe.calibration.count)
    teacher = Teacher(run.pipeline, run.architecture, run.prompts.prompts, chosen)
    distillation = prepare_distillation(run.recipe, teacher, list(run.layers), run.recordings, run.progress)
    run = replace(run, distillation=distillation)
    allocate_together(run)
    records = [record for part in run.layers.items() for record in _compress_component(run, *part)]
    if run.workers.is_main_process:
        _publish(run, output, records, overwrite, journal)
    run.workers.barrier()


def _publish(run: Run, output: Path, records: list[LayerRecord], overwrite: bool, journal: Journal) -> None:
    """Write the folder, open it again, compare a call, note it in the journal, and put it into its place."""

    def check(partial: Path) -> None:
        run.progress("write", 1, 2, "opened again, one call compared")
        check_reopens(run.calibration_run(), partial, run.layers, run.placement)
        journal.write(partial)

    run.progress("write", 0, 2, output.name)
    save_pipeline(
        run.pipeline,
        output,
        recipe=run.recipe.to_dict(),
        layers=records,
        overwrite=overwrite,
        before_publication=check,
    )
    run.progress("write", 2, 2, output.name)


def _check_workers(recipe: Recipe) -> None:
    """Several processes share one-pass recording and encoding, nothing else."""
    if expected_workers() == 1:
        return
    if recipe.finetune != "none":
        raise RecipeError(
            "several processes quantize together only with finetune='none'; fine-tune the folder afterwards: "
            "torchrun … -m vqcompress.cli finetune"
        )
    if recipe.calibration.order == "sequential":
        raise RecipeError(
            "in sequential order each block waits for the one before it: several processes quantize together only in "
            "parallel order; "
            "leave out --order sequential, or torchrun"
        )


def _check_finetuning(recipe: Recipe, architecture: Architecture) -> None:
    """Fine-tuning is of one denoiser, the architecture's first."""
    quantized = [name for name in recipe.components or architecture.denoisers if name in architecture.denoisers]
    if recipe.finetune != "none" and quantized != [architecture.denoiser]:
        raise RecipeError(
            f"fine-tuning trains one denoiser, {architecture.denoiser}, and this run quantizes "
            f"{', '.join(quantized) or 'none'}; use finetune='none', or components={architecture.denoiser!r}"
        )


def _check_dtype(recipe: Recipe, placement: Placement) -> None:
    if recipe.finetune != "none" and placement.dtype not in (None, torch.float32):
        raise RecipeError(
            "fine-tuning within a quantization computes in float32: leave dtype out, or take finetune='none' and then "
            "`vqcompress finetune`, whose original may have 16 bits"
        )


def _check_images(recipe: Recipe, pipeline: DiffusionPipeline) -> None:
    if recipe.calibration.images is not None and not drawn_inputs(pipeline):
        raise RecipeError(
            f"{type(pipeline).__name__} is calibrated with prompts alone; leave out the images "
            f"({recipe.calibration.images})"
        )


def _check_method(recipe: Recipe) -> None:
    if recipe.output_feedback and not METHODS[recipe.method].output_feedback:
        able = ", ".join(name for name, method in METHODS.items() if method.output_feedback)
        raise RecipeError(
            f"method {recipe.method!r} encodes each output by itself, and output feedback is for {able}; leave out one "
            "of the two"
        )


def effective_recipe(model: str | DiffusionPipeline, recipe: Recipe | None, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with ``changes`` applied and the model's name in it."""
    name = model if isinstance(model, str) else str(getattr(model, "name_or_path", "") or type(model).__name__)
    base, given = recipe.to_dict() if recipe else {}, current_names(changes)
    if (preset := given.pop("preset", None)) is not None:
        base = layered(base, values_of_preset(preset, given, base))
    return Recipe.parse({**layered(base, given), "model": name})


def _compress_component(run: Run, component: str, layers: list[str]) -> list[LayerRecord]:
    """Compress a component in place; returns a record of each of ``layers``."""
    in_order = METHODS[run.recipe.method].calibrated and encodes_in_order(run, component)
    needs_moments = (METHODS[run.recipe.method].calibrated and not in_order) or run.recipe.shares_budget
    groups = record_component(run, component, layers) if needs_moments else {}
    bits = allocate(run, component, layers, groups)
    coded = [layer for layer in layers if bits[layer] < dense_bits(run.weight(component, layer))]
    codebooks = shared_codebooks(run, component, coded)
    record_outputs(run, component, coded)
    if in_order:
        encoded, groups, quantized = encode_in_order(run, component, coded, bits, codebooks)
    else:
        encoded, quantized = run, encode_all(run, component, coded, bits, groups, codebooks)
    samples = {layer: recorded_group(encoded, component, key)["used_rows"] for layer, key in groups.items()}
    importance = importance_of_layers(run, component, layers, groups) if run.recipe.shares_budget else {}
    records = [
        _record_of(run, component, layer, quantized.get(layer), importance.get(layer), samples.get(layer))
        for layer in layers
    ]
    dense = {layer: why_unfit(run, component, layer) or LEFT_DENSE for layer in layers if layer not in quantized}
    if not quantized:
        raise RecipeError(f"no layer of {component} can be quantized: {next(iter(dense.values()))}")
    reasons = {"dense": dense, "ignored": run.ignored[component]}
    if run.distillation and component == run.architecture.denoiser:
        context = TuningContext.of(
            run.pipeline, run.architecture, run.recipe, run.distillation, run.store, progress=run.progress
        )
        swap_and_tune(run.component(component), quantized, context, **reasons)
    else:
        swap(run.component(component), quantized, **reasons)
    return records


def _record_of(
    run: Run,
    component: str,
    layer: str,
    quantized: QuantizedWeight | None,
    importance: float | None,
    samples: int | None,
) -> LayerRecord:
    """What became of a layer that saw ``samples`` inputs; ``quantized`` is ``None`` where it stays dense."""
    weight = run.weight(component, layer)
    return LayerRecord(
        component=component,
        layer=layer,
        format="dense" if quantized is None else quantized.spec.format,
        bits=float(dense_bits(weight)) if quantized is None else quantized.bits_per_weight,
        error=0.0 if quantized is None else encoded_error(run, component, layer),
        importance=importance,
        rows=samples,
        columns=to_matrix(weight).shape[1],
        outliers=0 if quantized is None else quantized.outliers,
        gap=None if quantized is None else encoded_gap(run, component, layer),
    )
