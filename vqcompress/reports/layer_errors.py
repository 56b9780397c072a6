"""Errors of every quantized layer of every variant, in one pass over the original's activations.

Second moments are large and come a few at a time; packed weights are small. So the packed weights of all variants are
kept, and each layer is measured in all variants while its moment is in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from diffusers import DiffusionPipeline
from torch import Tensor

from vqcompress.architectures import Architecture
from vqcompress.calibration.record import RecordingLimits, record_moments
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.layers import vq_layers
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.quantizers.layer_error import relative_errors
from vqcompress.reports.variant import LayerError


class Decodable(Protocol):
    """A packed weight, ours or another package's."""

    @property
    def bits_per_weight(self) -> float: ...

    def decode(self) -> Tensor: ...


Packed = Mapping[str, Mapping[str, Decodable]]
"""Component -> layer -> packed weight."""

MEMORY_BUDGET = 4_000_000_000  # bytes of second moments held at once
SAMPLES_PER_CALL = 4096


def packed_weights(pipeline: DiffusionPipeline, architecture: Architecture) -> dict[str, dict[str, QuantizedWeight]]:
    """The packed weights of all components, as plain data that outlives the pipeline."""
    found = {name: vq_layers(architecture.module(pipeline, name)) for name in architecture.components}
    return {
        name: {layer: module.quantized_weight() for layer, module in layers.items()}
        for name, layers in found.items()
        if layers
    }


def layer_errors(
    pipeline: DiffusionPipeline,
    architecture: Architecture,
    variants: Mapping[str, Packed],
    run: SamplingRun | None,
    progress: Callable[[int, int], None],
) -> dict[str, tuple[LayerError, ...]]:
    """Label -> errors in execution order, weighted with the original's second moments as ``run`` samples it.

    ``pipeline`` is the original. Without ``run``, and for layers that no input reached, all inputs count alike.
    """
    errors: dict[str, dict[str, LayerError]] = defaultdict(dict)
    order: list[str] = []
    for component in architecture.components:
        layers = _layers_of(pipeline, architecture, component, variants)
        order += [_full_name(architecture, component, layer) for layer in layers]
        for layer, moment in _moments(pipeline, architecture, component, layers, run, progress):
            dense = architecture.module(pipeline, component).get_parameter(f"{layer}.weight").detach().float().cpu()
            name = _full_name(architecture, component, layer)
            weights = {label: packed.get(component, {}).get(layer) for label, packed in variants.items()}
            found = {label: weight for label, weight in weights.items() if weight is not None}
            decoded = (weight.decode().cpu() for weight in found.values())
            for (label, weight), error in zip(found.items(), relative_errors(dense, decoded, moment), strict=True):
                errors[label][name] = LayerError(name, error, weight.bits_per_weight)
    return {label: tuple(known[name] for name in order if name in known) for label, known in errors.items()}


def _layers_of(
    pipeline: DiffusionPipeline, architecture: Architecture, component: str, variants: Mapping[str, Packed]
) -> list[str]:
    """Layers that any variant has quantized, in execution order."""
    packed = {layer for variant in variants.values() for layer in variant.get(component, {})}
    return [plan.name for plan in architecture.layers(pipeline, component) if plan.name in packed]


def _moments(
    pipeline: DiffusionPipeline,
    architecture: Architecture,
    component: str,
    layers: Sequence[str],
    run: SamplingRun | None,
    progress: Callable[[int, int], None],
) -> Iterator[tuple[str, Tensor | None]]:
    if run is None or not layers:
        yield from ((layer, None) for layer in layers)
        return
    limits = RecordingLimits(MEMORY_BUDGET, SAMPLES_PER_CALL)
    recorded = record_moments(run, component, layers, limits, lambda done, total, _: progress(done, total))
    for names, moments in recorded:
        yield from ((name, moments.dense().cpu() if moments.seen else None) for name in names)


def _full_name(architecture: Architecture, component: str, layer: str) -> str:
    return layer if component == architecture.denoiser else f"{component}.{layer}"
