"""How far each layer's error moves the image that a prompt ends in.

A layer's weight error ``E`` is the same at every step. To first order it moves the final sample by ``J E``, where ``J``
adds up what the layer reads and causes in every call: guidance, the scheduler's coefficients and what later steps make
of earlier errors are all in it (`vqcompress.denoiser_calls.sampler_steps`). For a random direction ``v`` of unit
variance, the gradient of ``vᵀ z`` with respect to the weight, ``Γ [outputs, columns]``, is found by going back through
all calls of the trajectory, one at a time, and summing up. The expected squared distance for errors whose outputs are
independent and whose columns have the covariance ``C`` is ``E tr(Γ C Γᵀ)``: errors of successive steps add up as they
do in the image, where a sum over single calls takes them for independent.

``Γ`` is as large as the weight. Only its products with a few errors drawn from ``C``, and with a few random signs
along the outputs, are kept: ``tr(Γ C Γᵀ) = E |R Γ D|²``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.calibration.importance import with_gradients
from vqcompress.calibration.weight_errors import flat_response
from vqcompress.denoiser_calls.backward_projection import Watch, backward_projection, frozen
from vqcompress.denoiser_calls.call import first_output
from vqcompress.denoiser_calls.sampler_steps import Trajectory
from vqcompress.placement import execution_device
from vqcompress.tensor_tree import to_device

SIGNS = 16  # random combinations of a layer's outputs


def trajectory_costs(
    denoiser: nn.Module, trajectory: Trajectory, errors: Mapping[str, Tensor], seed: int
) -> dict[str, float]:
    """Expected squared distance by which each layer's error moves the final sample of ``trajectory``.

    ``errors[layer]`` holds draws ``[draws, …]`` of one output's weight error, in the dense shape of the layer's
    weight. The result is the cost of all outputs of a layer having such errors. Layers that the trajectory does not
    reach get 0.
    """
    sketches = {name: _Sketch.of(name, drawn, seed) for name, drawn in errors.items()}
    direction = torch.randn(trajectory.final.shape, generator=torch.Generator().manual_seed(seed))
    backward_along(denoiser, trajectory, direction, {name: sketch.watch for name, sketch in sketches.items()})
    return {name: sketch.cost() for name, sketch in sketches.items()}


@dataclass
class _Sketch:
    """``R Γ D`` of one layer: ``drawn`` are the rows of Dᵀ in the weight's dense shape, ``total [signs, draws]`` the
    sum so far."""

    drawn: Tensor
    generator: torch.Generator
    signs: Tensor | None = None
    total: Tensor | None = None

    @classmethod
    def of(cls, name: str, drawn: Tensor, seed: int) -> _Sketch:
        """With signs that depend on the seed and the layer's name alone."""
        return cls(drawn, torch.Generator().manual_seed((seed << 32) | zlib.crc32(name.encode())))

    def watch(self, layer: nn.Module, arguments: tuple[Any, ...]) -> Callable[[Tensor], None]:
        """As `backward_projection` wants it."""
        response = flat_response(layer, self.drawn, arguments[0].detach())
        return lambda gradients: self._add(gradients.float(), response)

    def cost(self) -> float:
        """``|R Γ D|²`` for one draw."""
        return 0.0 if self.total is None else float(self.total.double().square().sum()) / len(self.drawn)

    def _add(self, gradients: Tensor, response: Tensor) -> None:
        if self.signs is None or self.total is None:
            signs = torch.randint(0, 2, (gradients.shape[1], SIGNS), generator=self.generator)
            self.signs = ((2 * signs - 1) / SIGNS**0.5).to(gradients)
            self.total = gradients.new_zeros(SIGNS, len(self.drawn))
        self.total.addmm_((gradients @ self.signs).t(), response)


def backward_along(
    denoiser: nn.Module, trajectory: Trajectory, direction: Tensor, watches: Mapping[str, Watch]
) -> None:
    """Send ``direction``, a gradient of the final sample, back through all calls, the last one first; ``watches`` are
    shown the gradients in every call."""
    last, device = len(trajectory.calls), execution_device(denoiser)
    samples = {last: direction.to(device)}  # call -> gradient of its sample
    outputs: dict[tuple[int, int], Tensor] = {}  # call, branch -> gradient of its output
    with frozen(denoiser):
        for index in reversed(range(last)):
            step, gradient = trajectory.steps[index], samples.pop(index + 1)
            for lag, (kept, weights) in enumerate(zip(step.keep, step.weights, strict=True)):
                samples[index - lag] = samples.get(index - lag, 0) + kept * gradient
                for branch, weight in enumerate(weights):
                    place = index - lag, branch
                    outputs[place] = outputs.get(place, 0) + weight * gradient
            branches = [outputs.pop((index, branch)) for branch in range(len(step.weights[0]))]
            call = with_gradients(to_device(trajectory.calls[index], device))
            backward_projection(denoiser, watches, partial(_projection, denoiser, call, torch.cat(branches)))
            reached = call[trajectory.sample].grad
            if reached is not None:
                samples[index] = samples[index] + reached.sum(0, keepdim=True).float()


def _projection(denoiser: nn.Module, call: dict[str, Any], gradient: Tensor) -> Tensor:
    out = first_output(denoiser(**call))
    return (out[:, : gradient.shape[1]] * gradient.to(out)).sum()
