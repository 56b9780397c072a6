"""A sampler as a linear map, read off one of its trajectories.

Samplers of diffusion and flow models take a sample to the next one by a sum: ``z' = a z + Σ w_b o_b`` with the
denoiser's input ``z`` and its outputs ``o_b``, one for each guidance branch. Guidance, the scheduler's coefficients and
the scaling of inputs are all in ``a`` and ``w``, and least squares over the elements of one recorded trajectory finds
them, whatever the pipeline's code is. A sampler of second order also reads the call before (DPM-Solver++, Lu et al.
2022, arXiv 2211.01095; Heun); noise that a sampler adds is independent of both and leaves the coefficients what they
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vqcompress.denoiser_calls.record import listening
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.tensor_tree import to_device

SECOND_ORDER = 0.1  # of the residual is left where the call before is part of the sum
UNREAD = 0.5  # above it a step is not the sum that it is taken for


@dataclass(frozen=True)
class SamplerStep:
    """What the sample after a call is made of.

    ``keep[lag]`` is the factor of the sample that the denoiser was given, ``weights[lag][branch]`` that of its output;
    lag 0 is the call itself, lag 1, where there is one, the call before.
    """

    keep: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Trajectory:
    """One prompt's denoiser calls, from noise to the final sample, which lies on the CPU like the calls.

    ``calls`` are keyword arguments; ``sample`` names the one that is being denoised, ``[branches, channels, …]``, the
    same in all branches; ``final [1, channels, …]`` is what the last step makes of it.
    """

    calls: tuple[dict[str, Any], ...]
    steps: tuple[SamplerStep, ...]
    sample: str
    final: Tensor


def record_trajectory(run: SamplingRun, index: int) -> Trajectory | None:
    """The trajectory of prompt ``index`` alone; ``None`` where the sampler cannot be read as a linear map."""
    calls: list[dict[str, Any]] = []
    outputs: list[Tensor] = []

    def keep(arguments: dict[str, Any], output: Tensor) -> None:
        arguments.pop("return_dict", None)
        calls.append(to_device(arguments, "cpu", copy=True))
        outputs.append(to_device(output, "cpu", copy=True))

    with listening(run, keep):
        final = replace(run, batch_size=1).batch(index)
    if not isinstance(final, Tensor) or not calls:
        return None
    final = final.detach().cpu()
    name = _sample_argument(calls, final)
    if name is None:
        return None
    steps = read_steps([call[name][:1] for call in calls] + [final], outputs)
    return None if steps is None else Trajectory(tuple(calls), steps, name, final)


def read_steps(samples: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[SamplerStep, ...] | None:
    """The steps between ``samples`` (``[1, channels, …]``, one more than ``outputs [branches, channels or more, …]``).

    Channels of the outputs beyond those of the samples, as for learned variances, are left out. ``None`` where a step
    leaves more than half of the next sample's energy unexplained.
    """
    steps = []
    for index in range(len(outputs)):
        step, residual = _fitted(samples, outputs, index, lags=1)
        if index and (second := _fitted(samples, outputs, index, lags=2))[1] < SECOND_ORDER * residual:
            step, residual = second
        if not residual < UNREAD:
            return None
        steps.append(step)
    return tuple(steps)


def _fitted(samples: Sequence[Tensor], outputs: Sequence[Tensor], index: int, lags: int) -> tuple[SamplerStep, float]:
    """The step after call ``index``, and its relative squared residual."""
    wanted, channels = samples[index + 1].double().flatten(), samples[index + 1].shape[1]
    columns, branches = [], []
    for lag in range(lags):
        out = outputs[index - lag][:, :channels].double()
        columns += [samples[index - lag].double().flatten(), *(branch.flatten() for branch in out)]
        branches.append(len(out))
    known = torch.stack(columns, 1)
    found = torch.linalg.lstsq(known, wanted[:, None], driver="gelsd").solution[:, 0]
    residual = float((known @ found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-300))
    parts = [part.tolist() for part in found.split([1 + count for count in branches])]
    return SamplerStep(tuple(part[0] for part in parts), tuple(tuple(part[1:]) for part in parts)), residual


def _sample_argument(calls: Sequence[dict[str, Any]], final: Tensor) -> str | None:
    """The argument that has the final sample's shape in every call, and another value in the second than in the
    first."""
    for name, value in calls[0].items():
        shaped = all(isinstance(each := call.get(name), Tensor) and each.shape[1:] == final.shape[1:] for call in calls)
        if shaped and (len(calls) == 1 or not torch.equal(value, calls[1][name])):
            return name
    return None
