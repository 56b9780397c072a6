"""How much of the loss each layer's error is to blame for.

To first order an error ``E`` in a layer's weight moves a random projection of the denoiser's output by ``<Γ, E>``, ``Γ`` being the
projection's gradient in that weight (`vqcompress.finetune.gradients`). The mean square over units is what the layer alone adds to the
loss: within a third of what packing it alone does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from vqcompress.finetune.gradients import Use, backward_projections
from vqcompress.finetune.task import WholeDenoiser
from vqcompress.layers import vq_layers
from vqcompress.layers.packed import PackedLayer
from vqcompress.matrix_view import to_matrix

EFFECT_UNITS = 48  # tell the worst layers
ENOUGH = 0.98  # of the harm: layers after that are left alone

Errors = Mapping[str, Callable[[], Tensor]]
"""Layer -> gives what its codes get wrong, in its weight's dense shape."""


def layer_effects(task: WholeDenoiser, errors: Errors, units: Sequence[int], seed: int) -> dict[str, float]:
    """Layer -> what its error adds to the loss of ``task``, over training ``units``; its denoiser may be packed or dense.

    Holds no gradient of more than one layer at a time. Layers that no unit reaches get 0.
    """
    effects = dict.fromkeys(errors, 0.0)

    def adding(name: str) -> Use:
        def add(inputs: Tensor, gradients: Tensor) -> None:
            error = to_matrix(errors[name]()).to(inputs)
            moved = ((inputs @ error.t()) * gradients).sum((1, 2))
            effects[name] += float(moved.square().sum()) / len(units)

        return add

    backward_projections(task, {name: adding(name) for name in errors}, units, seed)
    return effects


def worst_of(effects: Mapping[str, float], count: int | None = None) -> list[str]:
    """The layers that do nearly all of the harm, at most ``count``, the worst first."""
    total, harm, chosen = sum(effects.values()), 0.0, []
    for name in sorted(effects, key=effects.__getitem__, reverse=True)[:count]:
        if harm < ENOUGH * total:
            chosen.append(name)
        harm += effects[name]
    return chosen


def as_many_as_fit(names: Sequence[str], sizes: Mapping[str, int], room: int) -> list[str]:
    """Of ``names``, from the first on, those that ``room`` holds together; one too large leaves its place to later ones."""
    chosen = []
    for name in names:
        if sizes[name] <= room:
            chosen.append(name)
            room -= sizes[name]
    return chosen


def packed_errors(student: nn.Module, original: nn.Module) -> Errors:
    """Of the packed layers of ``student``; ``original`` is the dense denoiser."""

    def error_of(layer: PackedLayer, weight: Tensor) -> Callable[[], Tensor]:
        return lambda: layer.dense_weight() - weight.to(layer.weight.device)

    return {name: error_of(layer, original.get_submodule(name).weight) for name, layer in vq_layers(student).items()}
