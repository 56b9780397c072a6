"""How much of the loss each packed layer's error is to blame for.

To first order an error ``E`` in a layer's weight moves a random projection of the denoiser's output by ``<G, E>``, ``G`` being the
projection's gradient in that weight (`vqcompress.finetune.objective.random_projection`). The mean square over units and projections
is what the layer alone adds to the loss: within a third of what packing it alone does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.finetune.whole import WholeDenoiser
from vqcompress.layers import vq_layers
from vqcompress.layers.packed import PackedLayer
from vqcompress.matrix_view import to_matrix, unfold_input


def layer_effects(task: WholeDenoiser, original: nn.Module, units: Sequence[int], seed: int) -> dict[str, float]:
    """Packed layer -> what its error adds to the loss of ``task``, over training ``units``; ``original`` is the dense denoiser.

    Holds no gradient of more than one layer at a time. Layers that no unit reaches get 0.
    """
    layers = vq_layers(task.denoiser)
    effects = dict.fromkeys(layers, 0.0)
    generator = torch.Generator().manual_seed(seed)
    task.denoiser.requires_grad_(False)
    with torch.enable_grad():
        for unit in units:
            moved = dict.fromkeys(layers, 0.0)
            with ExitStack() as hooks:
                for name, layer in layers.items():
                    weight = original.get_submodule(name).weight
                    hooks.callback(layer.register_forward_hook(_watch(name, weight, moved)).remove)
                task.projection(unit, generator).backward()
            for name, value in moved.items():
                effects[name] += value**2 / len(units)
    return effects


def _watch(name: str, original: Tensor, moved: dict[str, float]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        assert isinstance(layer, PackedLayer)

        def add(gradient: Tensor) -> None:
            rows = gradient.movedim(1, -1) if isinstance(layer, nn.Conv2d) else gradient
            rows = rows.reshape(-1, rows.shape[-1]).float()
            slope = rows.t() @ unfold_input(inputs[0].detach(), layer).float()
            error = layer.dense_weight() - original.to(slope)
            moved[name] += float((slope * to_matrix(error)).sum())

        # What follows from timesteps or labels alone has no gradient of its own.
        output = output if output.requires_grad else output.detach().requires_grad_()
        output.register_hook(add)
        return output

    return hook
