"""What errors in a layer's weight add to the loss: to second order, layer by layer and column by column.

A random projection of the denoiser's output has the loss as its expected square
(`vqcompress.finetuning.objective.random_projections`). Let ``Γ [outputs, columns]`` be its gradient with respect to a
layer's weight. An error ``E`` of that weight then adds ``E[<Γ, E>²]`` to the loss, the Gauss-Newton approximation:

- `loss_contributions` estimates that number for the error that the layer has now. It is within a third of what
  packing the layer alone adds.
- `loss_moments` approximates the second moment of ``Γ`` by a Kronecker product: ``tr(G E A Eᵀ)`` with ``A`` from
  ``Γᵀ Γ`` and ``G`` from ``Γ Γᵀ`` (Tseng, Sun, De Sa 2025, YAQA, arXiv 2505.22988, section 3). Unlike the second
  moment of the inputs, ``A`` weighs inputs by how much the output depends on the layer where they occur; ``G`` says
  which outputs' errors add up.

``G`` is not the output moment of calibration (`vqcompress.calibration.output_moments`), whose ``g`` are gradients
with respect to outputs, one for each token or pixel; here tokens of a sample are added up first, as they are in
``Γ``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.denoiser_calls.backward_projection import Watch, backward_projection, frozen
from vqcompress.finetuning.task import WholeDenoiser
from vqcompress.matrix_view import matrix_shape, to_matrix, unfold_input

CONTRIBUTION_SAMPLES = 48  # rank the layers
SHRINKAGE = 0.01  # of the mean diagonal, added to A, which few samples make noisy

Use = Callable[[Tensor, Tensor], None]
"""``(inputs [groups, n, columns], gradients [groups, n, outputs])`` of one layer, float32. A group is a sample, with
all its branches, where the layer keeps samples apart; else it is all of them, which is as good on average, since
their projections are independent."""

Errors = Mapping[str, Callable[[], Tensor]]
"""Layer -> returns the error of its codes, in its weight's dense shape."""


@dataclass(frozen=True)
class LossMoment:
    """``inputs`` is A, ``[columns, columns]``, ``outputs`` is G, ``[outputs, outputs]``.

    Both are float32. Their mean diagonals are 1, before shrinkage.
    """

    inputs: Tensor
    outputs: Tensor

    def cost(self, error: Tensor) -> float:
        """``tr(G E A Eᵀ)`` of a weight's ``error``, in its dense shape."""
        matrix = to_matrix(error).float()
        return float(((self.outputs @ matrix) * (matrix @ self.inputs)).sum(dtype=torch.float64))

    def to(self, device: torch.device | str) -> LossMoment:
        """The same on another device."""
        return LossMoment(self.inputs.to(device), self.outputs.to(device))


def loss_contributions(task: WholeDenoiser, errors: Errors, samples: Sequence[int], seed: int) -> dict[str, float]:
    """Layer -> what its error adds to the loss of ``task``, over training ``samples``; its denoiser may be packed or
    dense.

    Holds the gradient of one layer at a time. Layers that no sample reaches get 0.
    """
    contributions = dict.fromkeys(errors, 0.0)

    def adding(name: str) -> Use:
        def add(inputs: Tensor, gradients: Tensor) -> None:
            error = to_matrix(errors[name]()).to(inputs)
            moved = ((inputs @ error.t()) * gradients).sum((1, 2))
            contributions[name] += float(moved.square().sum()) / len(samples)

        return add

    backward_projections(task, {name: adding(name) for name in errors}, samples, seed)
    return contributions


def loss_moments(task: WholeDenoiser, names: Sequence[str], samples: Sequence[int], seed: int) -> dict[str, LossMoment]:
    """The moments of layers ``names``, packed or dense, over training ``samples``, one projection each.

    Holds the moments of all ``names`` and one gradient at a time. Those of layers that no sample reaches are
    multiples of the identity.
    """
    moments = {name: _zero_moment(task.denoiser.get_submodule(name)) for name in names}

    def adding(moment: LossMoment) -> Use:
        def add(inputs: Tensor, gradients: Tensor) -> None:
            for read, backward in zip(inputs, gradients, strict=True):
                gradient = backward.t() @ read
                moment.inputs.addmm_(gradient.t(), gradient)
                moment.outputs.addmm_(gradient, gradient.t())

        return add

    backward_projections(task, {name: adding(moment) for name, moment in moments.items()}, samples, seed)
    for moment in moments.values():
        for side in (moment.inputs, moment.outputs):
            side.div_(side.diagonal().mean().clamp_min(1e-30))
        moment.inputs.diagonal().add_(SHRINKAGE)
    return moments


def backward_projections(task: WholeDenoiser, uses: Mapping[str, Use], samples: Sequence[int], seed: int) -> None:
    """Send one random projection of each of the training ``samples`` backwards; ``uses[layer]`` gets what its
    weight's gradient is made of. Layers that no sample reaches are not called."""
    generator, size = torch.Generator().manual_seed(seed), task.step_config.micro_batch
    with frozen(task.denoiser):
        for at in range(0, len(samples), size):
            batch = task.train.batch(samples[at : at + size], task.device)
            watches = {name: _watch(use, batch.branches, len(batch.weights)) for name, use in uses.items()}
            backward_projection(task.denoiser, watches, partial(task.projection, batch, generator))


def _watch(use: Use, branches: int, samples: int) -> Watch:
    def watch(layer: nn.Module, arguments: tuple[Any, ...]) -> Callable[[Tensor], None]:
        read = arguments[0].detach()
        apart = len(read) == branches * samples

        def grouped(tokens: Tensor) -> Tensor:
            """``[tokens, width]`` -> ``[groups, n, width]``; samples lie branch by branch."""
            wide = tokens.float()
            return wide.unflatten(0, (branches, samples, -1)).transpose(0, 1).flatten(1, 2) if apart else wide[None]

        return lambda gradients: use(grouped(unfold_input(read, layer)), grouped(gradients))

    return watch


def _zero_moment(layer: nn.Module) -> LossMoment:
    weight: Any = layer.weight
    outputs, columns = matrix_shape(getattr(layer, "dense_shape", weight.shape))
    return LossMoment(*(torch.zeros(side, side, device=weight.device) for side in (columns, outputs)))


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


def draw_samples(count: int, wanted: int, seed: int) -> list[int]:
    """Indices of ``wanted`` of ``count`` samples (of all, if there are not as many), at random.

    Samples lie in order of timestep within their shards, so the first ones would not do.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted].tolist()
