"""How far is the compressed denoiser's output from the original's, on the same inputs?

The inputs are those of the original's own trajectory, so the errors of earlier steps do not mix with those of this one:
the network is measured, and not how the sampler amplifies or damps errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor


class Energies(NamedTuple):
    """Summed squares, of one timestep or image: of the difference, and of the original's output."""

    error: float
    signal: float


def energies_by_timestep(calls: Iterable[tuple[float, Tensor, Tensor]]) -> dict[float, Energies]:
    """Sum up ``(timestep, output, reference)`` triples; outputs and references of one shape, any dtype.

    Sums are in float64. Timesteps are in the order of their first calls.
    """
    sums: dict[float, Energies] = {}
    for timestep, output, reference in calls:
        error, signal = sums.get(float(timestep), Energies(0.0, 0.0))
        truth = reference.double()
        error += float((output.double() - truth).square().sum())
        sums[float(timestep)] = Energies(error, signal + float(truth.square().sum()))
    return sums


def energies_by_image(output: Tensor, reference: Tensor, images: int) -> list[Energies]:
    """Energies of each of ``images`` images in one call, whose samples are ``k`` times those images in their order.

    Guidance calls a denoiser with every image twice: without its prompt, then with it.
    """
    truth = reference.double().reshape(len(reference) // images, images, -1)
    error = (output.double().reshape(truth.shape) - truth).square().sum((0, 2))
    return [Energies(e, s) for e, s in zip(error.tolist(), truth.square().sum((0, 2)).tolist(), strict=True)]


def signal_to_error_db(error: float) -> float:
    """A relative squared error as the decibels by which the signal is above it: ``-10 log10(error)``."""
    return -10 * math.log10(error) if error > 0 else math.nan if math.isnan(error) else math.inf


def denoiser_error(energies: Mapping[float, Energies]) -> float:
    """Relative mean squared error over all calls, ``Σ‖ŷ - y‖² / Σ‖y‖²``: 0 is lossless, an output of zeros has 1."""
    return _ratio(sum(e.error for e in energies.values()), sum(e.signal for e in energies.values()))


def error_by_timestep(energies: Mapping[float, Energies]) -> dict[float, float]:
    """The same ratio for each timestep alone."""
    return {timestep: _ratio(e.error, e.signal) for timestep, e in energies.items()}


def _ratio(error: float, signal: float) -> float:
    if signal == 0:
        return 0.0 if error == 0 else float("inf")
    return error / signal
