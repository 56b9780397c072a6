"""The objective: the squared error of each sample, and the weight of each timestep.

A sample is one prompt at one step of one trajectory, with all its guidance branches (two under classifier-free
guidance). With ``d`` the difference between the branches' errors and ``m`` their mean, the mean of the branches'
squared errors is ``|m|² + |d|² / 4``, while the guided output's error is ``m ± (g - 1/2) d``: guidance weighs the
difference by ``(g - 1/2)²``. ``guided`` says how far to go from the one to the other.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from vqcompress.errors import RecipeError

Target = Literal["epsilon", "v_prediction", "sample", "flow"]
TARGETS: tuple[Target, ...] = ("epsilon", "v_prediction", "sample")
MIN_SNR_GAMMA = 5.0  # Hang et al. 2023 (arXiv 2303.09556), section 3.4


def sample_losses(output: Tensor, target: Tensor, branches: int, guidance: float = 1.0, guided: float = 0.0) -> Tensor:
    """Mean squared error of every sample, float32 ``[samples]``.

    ``output`` and ``target`` are ``[branches * samples, …]``, branch by branch. ``guidance`` is the scale that
    sampling uses, ``guided`` in 0..1 the share of the guided output in the loss; both matter for two branches only.
    """
    error = (output.float() - target.float()).unflatten(0, (branches, -1)).flatten(2)
    if branches != 2 or guided == 0:
        return error.square().mean((0, 2))
    mean, difference = error.mean(0), error[1] - error[0]
    return mean.square().mean(1) + _difference_weight(guidance, guided) * difference.square().mean(1)


def random_projections(
    output: Tensor, branches: int, guidance: float, guided: float, generator: torch.Generator
) -> Tensor:
    """A random linear function of the output of every sample, ``[samples]``: its square at an error is on average
    that error's `sample_losses`.

    Their gradients therefore have the loss's Gauss-Newton matrix as their second moment.
    """
    values = output.float().unflatten(0, (branches, -1)).flatten(2)
    if branches == 2 and guided:
        weight = math.sqrt(_difference_weight(guidance, guided))
        values = torch.stack([values.mean(0), weight * (values[1] - values[0])])
    else:
        values = values / math.sqrt(branches)
    direction = torch.randn(values.shape, generator=generator).to(values)
    return (values * direction).sum((0, 2)) / math.sqrt(values.shape[2])


def _difference_weight(guidance: float, guided: float) -> float:
    return (1 - guided) / 4 + guided * (guidance - 0.5) ** 2


def has_noise_levels(scheduler: Any) -> bool:
    """Whether `noise_levels` can read ``scheduler``."""
    return _is_diffusion(scheduler) or _is_flow(scheduler)


def noise_levels(scheduler: Any, timesteps: Tensor) -> tuple[Tensor, Target]:
    """``(snr [n], target)`` for ``timesteps [n]``: of a diffusion scheduler by its ``alphas_cumprod``, of a
    flow-matching one by its linear path ``x = (1 - σ) data + σ noise``. Raises `RecipeError` for a scheduler that has
    neither."""
    if _is_diffusion(scheduler):
        alphas = scheduler.alphas_cumprod.double().cpu()
        kept = alphas[timesteps.round().long().clamp(0, len(alphas) - 1)]
        return kept / (1 - kept), scheduler.config["prediction_type"]
    if _is_flow(scheduler):
        count = float(getattr(scheduler, "config", {}).get("num_train_timesteps", 1000))
        sigma = (timesteps.double() / (count if float(timesteps.max()) > 1 else 1.0)).clamp(1e-4, 1 - 1e-4)
        return ((1 - sigma) / sigma).square(), "flow"
    raise RecipeError(
        f"weights by noise level need a diffusion or flow-matching scheduler, and {type(scheduler).__name__} is "
        "neither; use weighting='uniform' or 'measured'"
    )


def _is_diffusion(scheduler: Any) -> bool:
    levels, config = getattr(scheduler, "alphas_cumprod", None), getattr(scheduler, "config", {})
    return isinstance(levels, Tensor) and config.get("prediction_type") in TARGETS


def _is_flow(scheduler: Any) -> bool:
    return "flow" in type(scheduler).__name__.lower()


def min_snr_weights(snr: Tensor, target: Target) -> Tensor:
    """Weights of timesteps with signal-to-noise ratio ``snr``: ``min(snr, 5)`` in units of the denoised sample's error.

    Normalised to a mean of 1.
    """
    snr = snr.double().clamp_min(1e-8)
    weights = snr.clamp_max(MIN_SNR_GAMMA) * _propagated(snr, target)
    return (weights / weights.mean()).float()


def trajectory_weights(snr: Tensor, target: Target) -> Tensor:
    """Weights by how far an output's error moves the sample in the one step that a first-order sampler makes with it.

    With ``σ² = 1 / snr`` the sampler solves ``dx/dσ = (x - x₀) / σ`` (Karras et al. 2022, arXiv 2206.00364, equation
    4), so of the denoised sample's error ``e`` a step from ``σ`` to ``σ'`` takes over ``e (σ - σ') / σ``; the last
    one takes all of it. What later steps make of that error is left out. ``σ'`` is the next lower level in ``snr``,
    ``[samples]``, which therefore are those of whole trajectories. Kept within a factor of 10 of their mean, as
    `measured_weights` are, and normalised to a mean of 1.
    """
    snr = snr.double().clamp_min(1e-8)
    levels, places = snr.rsqrt().unique(return_inverse=True)
    following = torch.cat([levels.new_zeros(1), levels[:-1]])
    weights = ((levels - following) / levels).square()[places] * _propagated(snr, target)
    weights = (weights / weights.mean()).clamp(0.1, 10)
    return (weights / weights.mean()).float()


def _propagated(snr: Tensor, target: Target) -> Tensor:
    """The denoised sample's squared error, relative to that of the output: ``1 / snr`` (epsilon), ``1 / (snr + 1)``
    (v), 1, or ``1 / (1 + √snr)²`` (flow matching, whose noise level is ``1 / (1 + √snr)``)."""
    found = {
        "epsilon": 1 / snr,
        "v_prediction": 1 / (snr + 1),
        "sample": torch.ones_like(snr),
        "flow": 1 / (1 + snr.sqrt()).square(),
    }
    return found[target]


def measured_weights(timesteps: Tensor, errors: Tensor, buckets: int = 10) -> Tensor:
    """Weights by importance: proportional to the error measured before training in each of ``buckets`` ranges of
    timesteps.

    Both arguments are ``[samples]``; normalised to a mean of 1 over the samples, and kept within a factor of 10 of it.
    """
    order = timesteps.argsort(stable=True)
    weights = torch.ones(len(order))
    for members in order.tensor_split(min(buckets, len(order))):
        weights[members] = errors[members].float().mean()
    weights = (weights / weights.mean().clamp_min(1e-30)).clamp(0.1, 10)
    return weights / weights.mean()
