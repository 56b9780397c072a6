"""What errors in a layer's weight cost the loss, in two matrices.

Let ``Γ`` be the gradient of a random projection of the denoiser's output in the layer's weight
(`vqcompress.finetune.gradients`). To second order an error ``E`` adds ``E[<Γ, E>²]`` to the loss; a Kronecker
product of second moments stands for that of ``Γ``: ``tr(G E A Eᵀ)`` with ``A`` from ``Γᵀ Γ`` and ``G`` from ``Γ Γᵀ`` (Tseng, Sun,
De Sa 2025, YAQA, arXiv 2505.22988, section 3). Unlike the second moment of the inputs, ``A`` knows which inputs occur where the
output listens; ``G`` knows which outputs add up in what comes after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.finetune.gradients import Use, backward_projections
from vqcompress.finetune.task import WholeDenoiser
from vqcompress.matrix_view import matrix_shape, to_matrix

SHRINKAGE = 0.01  # of the mean diagonal, added to the moment of the columns, which few units make noisy


@dataclass(frozen=True)
class LossMoment:
    """``inputs`` is A, ``[columns, columns]``, ``outputs`` is G, ``[rows, rows]``; float32, their mean diagonals 1 before shrinkage."""

    inputs: Tensor
    outputs: Tensor

    def cost(self, error: Tensor) -> float:
        """``tr(G E A Eᵀ)`` of a weight's ``error``, in its dense shape."""
        matrix = to_matrix(error).float()
        return float(((self.outputs @ matrix) * (matrix @ self.inputs)).sum(dtype=torch.float64))

    def to(self, device: torch.device | str) -> LossMoment:
        """The same on another device."""
        return LossMoment(self.inputs.to(device), self.outputs.to(device))


def loss_moments(task: WholeDenoiser, names: Sequence[str], units: Sequence[int], seed: int) -> dict[str, LossMoment]:
    """The moments of layers ``names``, packed or dense, over training ``units``, one projection each.

    Holds the moments of all ``names`` and one gradient at a time. Those of layers that no unit reaches are multiples of the identity.
    """
    moments = {name: _nothing(task.denoiser.get_submodule(name)) for name in names}

    def adding(moment: LossMoment) -> Use:
        def add(inputs: Tensor, gradients: Tensor) -> None:
            for read, worth in zip(inputs, gradients, strict=True):
                slope = worth.t() @ read
                moment.inputs.addmm_(slope.t(), slope)
                moment.outputs.addmm_(slope, slope.t())

        return add

    backward_projections(task, {name: adding(moment) for name, moment in moments.items()}, units, seed)
    for moment in moments.values():
        for side in (moment.inputs, moment.outputs):
            side.div_(side.diagonal().mean().clamp_min(1e-30))
        moment.inputs.diagonal().add_(SHRINKAGE)
    return moments


def _nothing(layer: nn.Module) -> LossMoment:
    weight: Any = layer.weight
    rows, columns = matrix_shape(getattr(layer, "dense_shape", weight.shape))
    return LossMoment(*(torch.zeros(side, side, device=weight.device) for side in (columns, rows)))


def to_tensors(moments: Mapping[str, LossMoment]) -> dict[str, Tensor]:
    """For a file."""
    sides = ((name, moment.inputs, moment.outputs) for name, moment in moments.items())
    return {
        key: side for name, inputs, outputs in sides for key, side in ((f"{name} A", inputs), (f"{name} G", outputs))
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, LossMoment]:
    """The inverse of `to_tensors`."""
    names = [key.removesuffix(" A") for key in tensors if key.endswith(" A")]
    return {name: LossMoment(tensors[f"{name} A"], tensors[f"{name} G"]) for name in names}


def drawn_units(count: int, wanted: int, seed: int) -> list[int]:
    """``wanted`` of ``count`` units (all, if there are not as many). At random: units lie in order of timestep within their shards."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted].tolist()
