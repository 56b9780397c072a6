"""Run a compressed denoiser on the inputs that the original saw, and compare the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vqcompress.denoiser_calls.call import first_output
from vqcompress.denoiser_calls.record import TeacherCall
from vqcompress.metrics import Energies, energies_by_timestep
from vqcompress.tensor_tree import to_device


def replay(
    denoiser: nn.Module, calls: Sequence[TeacherCall], progress: Callable[[int, int], None]
) -> dict[float, Energies]:
    """Error and signal energies of ``denoiser`` on the recorded ``calls``, by timestep, from noise to image."""
    energies = energies_by_timestep(_triples(denoiser, calls, progress))
    return dict(sorted(energies.items(), reverse=_falls(calls)))


def _triples(
    denoiser: nn.Module, calls: Sequence[TeacherCall], progress: Callable[[int, int], None]
) -> Iterator[tuple[float, Tensor, Tensor]]:
    device = next(denoiser.parameters()).device
    for index, call in enumerate(calls):
        with torch.inference_mode():
            output = first_output(denoiser(**to_device(call["kwargs"], device)))
        yield timestep_of(call), output.cpu(), call["output"]
        progress(index + 1, len(calls))


def timestep_of(call: TeacherCall) -> float:
    """The call's timestep; the samples of a batch share it. It is 0 for a denoiser without timesteps."""
    return float(call["timestep"].flatten()[0].nan_to_num(0.0))


def _falls(calls: Sequence[TeacherCall]) -> bool:
    """Whether timesteps fall along the trajectory; those of some flow models rise."""
    times = [timestep_of(call) for call in calls]
    return len(times) < 2 or next((a > b for a, b in pairwise(times) if a != b), True)
