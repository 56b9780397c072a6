"""Encode the layers of a component, one a core; each is in the run folder as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from vqcompress.errors import UnfitWeightError
from vqcompress.formats import spec_from_dict, spec_to_dict
from vqcompress.matrix_view import matrix_shape
from vqcompress.methods import gave_way
from vqcompress.moments.rate_distortion import gap_of_layer
from vqcompress.moments.second_moment import keeps_samples
from vqcompress.progress import EncodedLayer, one_step
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.quantizers import quantize_weight, quantizer_of, settings_for
from vqcompress.quantizers.layer_error import relative_error
from vqcompress.stages.output_recording import output_moment_of
from vqcompress.stages.recording import moment_of, recorded_group
from vqcompress.stages.run import FACTORING, Run
from vqcompress.stages.scalar_budget import settings_of
from vqcompress.workers import workers_here
from vqcompress.working_memory import WorkingMemory, balanced, one_thread_each, return_freed_memory, usable_cores

CODING = 12_000  # operations of a matrix product that take as long as the search for one weight's code
SEARCHES_ON_GPU = 32  # layers at once: each keeps one multiprocessor busy


def encode_all(
    run: Run,
    component: str,
    layers: list[str],
    bits: dict[str, float],
    groups: dict[str, str],
    codebooks: Tensor | None,
) -> dict[str, QuantizedWeight]:
    """Encode all layers, one a core: the searches release the interpreter lock, and layers are independent.

    Layers whose weights no code fits are not among the result; `why_unfit` says why.
    Where several processes work together, each encodes its share and then finds the others' in the run folder.
    """
    room, there = WorkingMemory(int(run.recipe.calibration.memory_budget_gb * 1e9)), run.factoring_room()

    def encode(layer: str) -> tuple[QuantizedWeight | None, float]:
        outputs, columns, side = _sides(run, component, layer, groups.get(layer))
        needed = encoding_bytes(outputs, columns, side, run.recipe.output_feedback)
        on_device = run.factoring_device(columns, side).type != "cpu" and groups.get(layer) is not None
        with room.holding(needed), there.holding(FACTORING * columns * side if on_device else 0):
            start = time.perf_counter()
            weight = _encode(run, component, layer, bits[layer], groups.get(layer), codebooks)
            return_freed_memory()
            return weight, time.perf_counter() - start

    if run.workers.world_size > 1:
        costs = [_cost(run, component, layer, groups.get(layer)) for layer in layers]
        shares = balanced(costs, run.workers.world_size)
        mine = [layer for layer, share in zip(layers, shares, strict=True) if share == run.workers.rank]
        _encode_each(run, component, mine, encode)
        run.workers.barrier()
    return _encode_each(run, component, layers, encode)


def encoding_bytes(outputs: int, columns: int, side: int, output_feedback: bool = False) -> int:
    """Memory that encoding a weight ``[outputs, columns]`` takes, for a moment of ``side`` lines.

    The moment, its factor in float64 and in float32, copies of the weight; and the output moment with its factors.
    Measured: 1.8 GB for 1280 outputs and 11 520 columns (`benchmarks/stage_memory.py`).
    """
    return 10 * columns * side + 32 * outputs * columns + (32 * outputs**2 if output_feedback else 0)


def _encode_each(
    run: Run, component: str, layers: list[str], encode: Callable[[str], tuple[QuantizedWeight | None, float]]
) -> dict[str, QuantizedWeight]:
    quantized = {}
    at_once = max(1, usable_cores() // workers_here())
    if run.recipe.settings.get("search") == "gpu":
        at_once = max(at_once, SEARCHES_ON_GPU)
    with one_thread_each(), ThreadPoolExecutor(at_once) as pool:
        for index, (layer, (weight, seconds)) in enumerate(zip(layers, pool.map(encode, layers), strict=True)):
            if weight is not None:
                quantized[layer] = weight
            run.progress(f"encode {component}", index + 1, len(layers), _detail(run, component, layer, weight, seconds))
    return quantized


def _detail(run: Run, component: str, layer: str, weight: QuantizedWeight | None, seconds: float) -> EncodedLayer:
    if weight is None:
        return EncodedLayer(layer, f"stays dense: {why_unfit(run, component, layer)}", seconds=seconds)
    outliers = f", {weight.outliers} {'outlier' if weight.outliers == 1 else 'outliers'}" if weight.outliers else ""
    scalar = ", scalar code" if gave_way(run.recipe.method, weight.spec.format) else ""
    error = encoded_error(run, component, layer)
    said = f"{weight.bits_per_weight:.2f} bits, error {error:.2g}{outliers}{scalar}, {seconds:.1f} s"
    return EncodedLayer(layer, said, weight.bits_per_weight, error, seconds)


def _cost(run: Run, component: str, layer: str, group: str | None) -> float:
    """Roughly how many operations a layer takes: the search, products with the moment, its factorization."""
    outputs, columns, side = _sides(run, component, layer, group)
    return outputs * columns * (CODING + 7.0 * side) + columns**2 * side


def _sides(run: Run, component: str, layer: str, group: str | None) -> tuple[int, int, int]:
    """Outputs and columns of a layer's matrix, and the height of its stored second moment: columns, or few samples."""
    outputs, columns = matrix_shape(run.shape(component, layer))
    seen = 0 if group is None else recorded_group(run, component, group)["used_rows"]
    return outputs, columns, seen if keeps_samples(columns, seen) else columns


def shared_codebooks(run: Run, component: str, layers: list[str]) -> Tensor | None:
    """Codebooks for the whole component, where the method has any and the recipe shares them."""
    learn = quantizer_of(run.recipe.method).learn_codebooks
    if learn is None or not run.recipe.shared_codebooks:
        return None
    settings = settings_for(run.recipe.method, run.recipe.settings)

    def make() -> dict[str, Tensor]:
        weights = (run.weight(component, layer) for layer in layers)
        with one_step(run.progress, f"codebooks {component}", ""):
            return {"codebooks": learn(weights, settings, run.recipe.seed, run.recipe.bits)}

    stored = run.main_process_first(lambda: run.store.load_or_make(f"{component}.codebooks", "shared", make))
    return stored["codebooks"]


def encoded_layers(run: Run, component: str) -> set[str]:
    """Layers whose codes and description are both in the run folder, or why they have none."""
    coded, described = run.store.done(_codes(component)), run.store.done(_specs(component))
    return {layer for layer in described if layer in coded or why_unfit(run, component, layer)}


def why_unfit(run: Run, component: str, layer: str) -> str | None:
    """Why a layer's weight could not be coded, ``None`` where it was, or was not tried."""
    if layer not in run.store.done(_specs(component)):
        return None
    return run.store.load_json(_specs(component), layer).get("unfit")


def encoded_error(run: Run, component: str, layer: str) -> float:
    """Relative error of an encoded layer, weighted by the second moment of its input."""
    return run.store.load_json(_specs(component), layer)["error"]


def encoded_gap(run: Run, component: str, layer: str) -> float | None:
    """Bits a weight that an encoded layer spends above the rate-distortion bound (`moments.rate_distortion`)."""
    return run.store.load_json(_specs(component), layer).get("gap")  # runs that began before it was told have none


def _codes(component: str) -> str:
    return f"{component}.layers"


def _specs(component: str) -> str:
    return f"{component}.layers.spec"


def _encode(
    run: Run, component: str, layer: str, bits: float, group: str | None, codebooks: Tensor | None
) -> QuantizedWeight | None:
    """Quantize one layer, or take it from the run folder where an earlier try left it; ``None`` where no code fits."""
    if why_unfit(run, component, layer):
        return None
    weight = run.weight(component, layer)

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        moment = moment_of(run, component, group)
        fresh = quantize_weight(
            weight,
            moment,
            method=run.recipe.method,
            bits=bits,
            seed=run.recipe.seed,
            settings=settings_of(run, component, layer),
            shared_codebooks=codebooks,
            output_moment=output_moment_of(run, component, layer),
        )
        error = relative_error(weight, fresh.decode(), moment)
        gap = gap_of_layer(moment, fresh.bits_per_weight, error)
        return dict(fresh.tensors), {"spec": spec_to_dict(fresh.spec), "error": error, "gap": gap}

    try:
        tensors, description = run.store.load_or_make_pair(_codes(component), _specs(component), layer, make)
    except UnfitWeightError as error:
        run.store.put_json(_specs(component), layer, {"unfit": str(error)})
        return None
    shared = {} if codebooks is None else {"codebooks": codebooks}
    return QuantizedWeight(spec_from_dict(description["spec"]), tuple(weight.shape), tensors, shared)
