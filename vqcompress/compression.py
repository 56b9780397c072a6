"""The whole story on one page: a pipeline goes in, a packed folder comes out.

`Recipe` -> architecture -> moments -> bits per layer -> packed weights -> layers swapped in -> folder. Every stage
keeps its results in a run folder beside the output, so a run that was stopped goes on from there with the same command.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from vqcompress.architectures import Architecture, architecture_of, open_pipeline
from vqcompress.architectures.narrow_weights import hold_narrow
from vqcompress.calibration.importance import layer_importance
from vqcompress.calibration.moments import Moments, RecordedRows
from vqcompress.calibration.prompts import PromptSet, choose_diverse, load_prompts
from vqcompress.calibration.record import record_moments
from vqcompress.calibration.starved import is_starved, sibling_key, usable_moment
from vqcompress.calibration.teacher import record_teacher
from vqcompress.checkpoint import LayerRecord, save_pipeline
from vqcompress.checkpoint.narrowing import narrowest_dtype
from vqcompress.errors import ArchitectureError, CheckpointError
from vqcompress.finetune import Lessons, prepare_lessons, swap_and_tune
from vqcompress.formats import spec_from_dict, spec_to_dict
from vqcompress.layers import swap, vq_layers
from vqcompress.matrix_view import matrix_shape, to_matrix
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.quantizers import METHODS, quantize_weight, settings_for
from vqcompress.quantizers.bit_allocation import LayerCost, allocate_bits, allocate_whole_bits
from vqcompress.quantizers.error_feedback import prepare_feedback
from vqcompress.quantizers.layer_error import relative_error
from vqcompress.quantizers.row_moment import RowMoment
from vqcompress.recipe import Recipe
from vqcompress.run_store import RunStore
from vqcompress.working_memory import WorkingMemory, usable_cores

Progress = Callable[[str, int, int, str], None]
"""``(stage, done, total, detail)``"""

SCALAR_BITS = (2, 8)  # widths that scalar codes may have
LEFT_DENSE = "its error costs the output more than its bits do: left dense by the model's budget"
IMPORTANCE_CALLS, IMPORTANCE_PROMPTS = 16, 8  # recorded denoiser calls from which layer importance is estimated


@dataclass(frozen=True)
class Run:
    """What the stages of one run share."""

    recipe: Recipe
    pipeline: DiffusionPipeline
    architecture: Architecture
    store: RunStore
    recordings: RunStore
    prompts: PromptSet
    progress: Progress
    kept: dict[str, dict[str, str]]
    lessons: Lessons | None = None

    def component(self, name: str) -> nn.Module:
        """A part of the pipeline by its name."""
        return getattr(self.pipeline, name)

    def weight(self, component: str, layer: str) -> Tensor:
        """A layer's dense weight."""
        return self.component(component).get_submodule(layer).weight.detach()

    def chosen_prompts(self, count: int) -> tuple[str, ...]:
        """The most diverse ``count`` calibration prompts."""
        return choose_diverse(self.prompts.prompts, count, self.recipe.seed)


def quantize(
    model: str | DiffusionPipeline,
    output: str | Path,
    *,
    recipe: Recipe | None = None,
    overwrite: bool = False,
    calibration_folder: str | Path | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Path:
    """Compress ``model`` (alias, Hub id, folder, single file, or a loaded pipeline) into the folder ``output``.

    ``changes`` are `Recipe` keys, for example ``bits=3.0, method="trellis", seed=0``, that replace those of ``recipe``.
    ``calibration_folder`` is a folder in which what was recorded is kept, so that other methods and bit widths need not record it
    again; without it, it goes with the run. Returns the folder, which ``DiffusionPipeline.from_pretrained`` loads. A pipeline that is passed in ends up compressed
    itself. Raises a `VQCompressError` for whatever a user can mend, before anything is written at ``output``.
    """
    output = Path(output)
    recipe = effective_recipe(model, recipe, changes)
    if output.exists() and not overwrite:
        raise CheckpointError(f"{output} exists; choose another folder or pass --overwrite (overwrite=True)")
    settings_for(recipe.method, recipe.settings)
    named = load_prompts(recipe.calibration.prompts) if recipe.calibration.prompts else None
    pipeline = open_pipeline(model, narrow=recipe.finetune == "none") if isinstance(model, str) else model
    architecture = architecture_of(pipeline)
    prompts = named or load_prompts(architecture.prompt_set)
    layers, kept = _plan(recipe, pipeline, architecture)
    if isinstance(model, str):
        hold_narrow(architecture.module(pipeline, architecture.denoiser), layers.get(architecture.denoiser, ()))
    work = output.with_name(output.name + ".partial")
    recorded = _recording_signature(recipe, prompts, pipeline, architecture)
    with ExitStack() as stores:
        store = stores.enter_context(RunStore(work, signature={**recorded, "recipe": recipe.to_dict()}))
        recordings = (
            stores.enter_context(RunStore(calibration_folder, signature=recorded)) if calibration_folder else store
        )
        run = Run(recipe, pipeline, architecture, store, recordings, prompts, progress or _silent, kept)
        chosen = () if recipe.finetune == "none" else run.chosen_prompts(recipe.calibration.count)
        lessons = prepare_lessons(
            recipe, pipeline, architecture, list(layers), prompts.prompts, chosen, recordings, run.progress
        )
        run = replace(run, lessons=lessons)
        records = [record for part in layers.items() for record in _compress_component(run, *part)]
        written = save_pipeline(pipeline, output, recipe=recipe.to_dict(), layers=records, overwrite=overwrite)
    shutil.rmtree(work)
    return written


def effective_recipe(model: str | DiffusionPipeline, recipe: Recipe | None, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with ``changes`` applied and the model's name in it."""
    name = model if isinstance(model, str) else str(getattr(model, "name_or_path", "") or type(model).__name__)
    return Recipe.parse({**(recipe.to_dict() if recipe else {}), "model": name, **changes})


def _recording_signature(
    recipe: Recipe, prompts: PromptSet, pipeline: DiffusionPipeline, architecture: Architecture
) -> dict[str, Any]:
    """What calibration depends on: a stopped run, or another one that reuses its recordings, must agree on it."""
    return {
        "version": version("vqcompress"),
        "calibration": recipe.calibration.model_dump(mode="json"),
        "keep": recipe.keep,
        "seed": recipe.seed,
        "prompts": prompts.sha256,
        "base": {name: _fingerprint(getattr(pipeline, name)) for name in architecture.components},
    }


def _fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and a sample of every tensor's values: another base model changes it."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 256)].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _plan(
    recipe: Recipe, pipeline: DiffusionPipeline, architecture: Architecture
) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
    """Component -> layers to quantize, in execution order; and component -> layer that stays dense -> reason."""
    keep = None if recipe.keep is None else list(recipe.keep.items())
    layers, kept = {}, {}
    for component in recipe.components or (architecture.denoiser,):
        if vq_layers(getattr(pipeline, component, None) or nn.Module()):
            raise ArchitectureError(
                f"{component} of {recipe.model} is already compressed; start from the original model, or dequantize it first"
            )
        plans = architecture.layers(pipeline, component, keep=keep)
        layers[component] = [plan.name for plan in plans if plan.kept is None]
        if not layers[component]:
            raise ArchitectureError(f"{component} has no layer to quantize under this recipe; see its 'keep' patterns")
        kept[component] = {plan.name: plan.kept for plan in plans if plan.kept is not None}
    return layers, kept


def _compress_component(run: Run, component: str, layers: list[str]) -> list[LayerRecord]:
    """Compress a component in place; returns what became of each of ``layers``."""
    needs_moments = METHODS[run.recipe.method].calibrated or run.recipe.shares_budget
    groups = _record(run, component, layers) if needs_moments else {}
    bits = _allocate(run, component, layers, groups)
    coded = [layer for layer in layers if bits[layer] < _dense_bits(run.weight(component, layer))]
    codebooks = _shared_codebooks(run, component, coded)
    quantized = _encode_all(run, component, coded, bits, groups, codebooks)
    records = [_record_of(run, component, layer, quantized.get(layer), groups.get(layer)) for layer in layers]
    dense = {layer: LEFT_DENSE for layer in layers if layer not in quantized}
    reasons = {"dense": dense, "kept": run.kept[component]}
    if run.lessons and component == run.architecture.denoiser:
        swap_and_tune(
            run.recipe,
            run.pipeline,
            run.architecture,
            quantized,
            run.lessons,
            run.store,
            progress=run.progress,
            **reasons,
        )
    else:
        swap(run.component(component), quantized, **reasons)
    return records


def _record_of(
    run: Run, component: str, layer: str, quantized: QuantizedWeight | None, group: str | None
) -> LayerRecord:
    """What became of a layer; ``quantized`` is ``None`` where it stays dense."""
    weight = run.weight(component, layer)
    importance = _importance_of_layers(run, component, [layer]) if run.recipe.shares_budget else {}
    seen = None if group is None else _group(run, f"{component}.moments", group)
    return LayerRecord(
        component=component,
        layer=layer,
        format="dense" if quantized is None else quantized.spec.format,
        bits=float(_dense_bits(weight)) if quantized is None else quantized.bits_per_weight,
        error=0.0
        if quantized is None
        else run.store.load_or_make_json(f"{component}.layers.spec", layer, dict)["error"],
        importance=importance.get(layer),
        rows=None if seen is None else seen["used_rows"],
        columns=to_matrix(weight).shape[1],
    )


def _record(run: Run, component: str, layers: list[str]) -> dict[str, str]:
    """Record second moments on disk; maps each layer to the key of its group's (layers with one input share them)."""
    stage, calibration = f"{component}.moments", run.recipe.calibration
    groups = {
        layer: key for key in run.recordings.done(f"{stage}.layers") for layer in _group(run, stage, key)["layers"]
    }
    missing = [layer for layer in layers if layer not in groups]
    if not missing:
        return groups
    recorded = record_moments(
        run.pipeline,
        run.architecture,
        component,
        missing,
        run.chosen_prompts(calibration.count),
        seed=run.recipe.seed,
        steps=calibration.steps,
        guidance=calibration.guidance,
        height=calibration.height,
        width=calibration.width,
        batch_size=calibration.batch_size,
        memory_budget=int(calibration.memory_budget_gb * 1e9),
        max_rows_per_call=calibration.rows_per_call,
        progress=lambda done, total, what: run.progress(f"calibrate {component}", done, total, what),
    )
    for names, moments in recorded:
        run.recordings.load_or_make(stage, names[0], moments.state_dict)
        run.recordings.put_json(f"{stage}.layers", names[0], {"layers": names, "used_rows": moments.used_rows})
        groups.update(dict.fromkeys(names, names[0]))
    return groups


def _group(run: Run, stage: str, key: str) -> dict[str, Any]:
    """``{"layers": names of one input, "used_rows": how many of its rows were multiplied}``"""
    return run.recordings.load_or_make_json(f"{stage}.layers", key, dict)


def _moments(run: Run, component: str, key: str | None) -> Tensor | RowMoment | None:
    """The second moment of a group, or None where no row was seen (or none is needed): white inputs."""
    if key is None:
        return None
    moments = _recorded_moments(run, component, key)
    siblings = _siblings(run, component, key) if is_starved(moments) else []
    return usable_moment(moments, siblings)


def _recorded_moments(run: Run, component: str, key: str) -> Moments | RecordedRows:
    return Moments.from_state_dict(run.recordings.load_or_make(f"{component}.moments", key, dict))


def _siblings(run: Run, component: str, key: str) -> list[Moments | RecordedRows]:
    """What the layers at the same place of all experts saw."""
    wanted, keys = sibling_key(key), run.recordings.done(f"{component}.moments.layers")
    return [_recorded_moments(run, component, each) for each in keys if wanted and sibling_key(each) == wanted]


def _allocate(run: Run, component: str, layers: list[str], groups: dict[str, str]) -> dict[str, float]:
    """Bits for each layer: the same for all, or a model-wide budget dealt out by what each layer's error costs."""
    recipe = run.recipe
    if not recipe.shares_budget:
        return dict.fromkeys(layers, recipe.bits)

    def make() -> dict[str, float]:
        importance = _importance_of_layers(run, component, layers)
        keys = dict.fromkeys(groups.get(layer) for layer in layers)
        sensitivities = {key: _sensitivity(run, component, key) for key in keys}
        costs = {}
        for layer in layers:
            weight = to_matrix(run.weight(component, layer)).float()
            sensitivity = sensitivities[groups.get(layer)]
            sensitivity = torch.ones(weight.shape[1]) if sensitivity is None else sensitivity
            energy, dense_bits = float(weight.square().mean()), _dense_bits(weight)
            costs[layer] = LayerCost(len(weight), sensitivity, energy, importance[layer], dense_bits)
        if METHODS[recipe.method].whole_bits:
            return {layer: float(bits) for layer, bits in allocate_whole_bits(costs, recipe.bits, *SCALAR_BITS).items()}
        return allocate_bits(costs, recipe.bits)

    return run.store.load_or_make_json(f"{component}.bits", "all", make)


def _dense_bits(weight: Tensor) -> int:
    """Bits that each weight of a dense layer takes in the saved folder."""
    return 8 * narrowest_dtype([weight]).itemsize


def _importance_of_layers(run: Run, component: str, layers: list[str]) -> dict[str, float]:
    return run.recordings.load_or_make_json(
        f"{component}.importance", "all", lambda: _importance(run, component, layers)
    )


def _importance(run: Run, component: str, layers: list[str]) -> dict[str, float]:
    """How far each layer's error moves the denoiser's output; equal for parts that are not the denoiser."""
    if component != run.architecture.denoiser:
        return dict.fromkeys(layers, 1.0)
    calibration = run.recipe.calibration
    calls = record_teacher(
        run.pipeline,
        run.architecture,
        run.chosen_prompts(IMPORTANCE_PROMPTS),
        seed=run.recipe.seed,
        steps=calibration.steps,
        guidance=calibration.guidance,
        height=calibration.height,
        width=calibration.width,
        batch_size=max(1, calibration.batch_size // 4),  # the backward pass keeps activations
        count=IMPORTANCE_CALLS,
    )
    return layer_importance(
        run.component(component),
        layers,
        [call["kwargs"] for call in calls],
        seed=run.recipe.seed,
        progress=lambda done, total, what: run.progress(f"importance {component}", done, total, what),
    )


def _sensitivity(run: Run, component: str, group: str | None) -> Tensor | None:
    moment = _moments(run, component, group)
    return None if moment is None else prepare_feedback(moment).sensitivity


def _shared_codebooks(run: Run, component: str, layers: list[str]) -> Tensor | None:
    """Codebooks for the whole component, where the method has codebooks and the recipe shares them."""
    learn = METHODS[run.recipe.method].learn_codebooks
    if learn is None or not run.recipe.shared_codebooks:
        return None
    settings = settings_for(run.recipe.method, run.recipe.settings)

    def make() -> dict[str, Tensor]:
        run.progress(f"codebooks {component}", 0, 1, "")
        weights = (run.weight(component, layer) for layer in layers)
        learned = learn(weights, settings, run.recipe.seed, run.recipe.bits)
        run.progress(f"codebooks {component}", 1, 1, "")
        return {"codebooks": learned}

    return run.store.load_or_make(f"{component}.codebooks", "shared", make)["codebooks"]


def _encode_all(
    run: Run,
    component: str,
    layers: list[str],
    bits: dict[str, float],
    groups: dict[str, str],
    codebooks: Tensor | None,
) -> dict[str, QuantizedWeight]:
    """Encode all layers, one a core: the searches let go of the interpreter, and layers do not depend on each other."""

    def encode(layer: str) -> QuantizedWeight:
        rows, columns = matrix_shape(run.weight(component, layer).shape)
        with room.holding(9 * columns**2 + 32 * rows * columns):  # the moment, its factor, and copies of the weight
            return _encode(run, component, layer, bits[layer], groups.get(layer), codebooks)

    quantized = {}
    room = WorkingMemory(int(run.recipe.calibration.memory_budget_gb * 1e9))
    with one_thread_each(), ThreadPoolExecutor(usable_cores()) as pool:
        for index, (layer, weight) in enumerate(zip(layers, pool.map(encode, layers), strict=True)):
            quantized[layer] = weight
            error = run.store.load_or_make_json(f"{component}.layers.spec", layer, dict)["error"]
            detail = f"{layer}: {weight.bits_per_weight:.2f} bits, error {error:.2g}"
            run.progress(f"encode {component}", index + 1, len(layers), detail)
    return quantized


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Torch's own threads off while layers are spread over cores; it also keeps sums in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _encode(
    run: Run, component: str, layer: str, bits: float, group: str | None, codebooks: Tensor | None
) -> QuantizedWeight:
    """Quantize one layer, or take it from the run folder where an earlier try left it."""
    stage, weight = f"{component}.layers", run.weight(component, layer)

    def make() -> dict[str, Tensor]:
        moment = _moments(run, component, group)
        fresh = quantize_weight(
            weight,
            moment,
            method=run.recipe.method,
            bits=bits,
            seed=run.recipe.seed,
            settings=settings_for(run.recipe.method, run.recipe.settings),
            shared_codebooks=codebooks,
        )
        error = relative_error(weight, fresh.decode(), moment)
        # Before the tensors: whoever finds them after a crash needs the spec, and one without them is made again.
        run.store.put_json(f"{stage}.spec", layer, {"spec": spec_to_dict(fresh.spec), "error": error})
        return dict(fresh.tensors)

    tensors = run.store.load_or_make(stage, layer, make)
    spec = run.store.load_or_make_json(f"{stage}.spec", layer, dict)["spec"]
    shared = {} if codebooks is None else {"codebooks": codebooks}
    return QuantizedWeight(spec_from_dict(spec), tuple(weight.shape), tensors, shared)


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    """Progress that nobody watches."""
