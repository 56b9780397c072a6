"""Run a compressed denoiser on the inputs that the original saw, and compare the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from vqcompress.denoiser_calls.call import first_output
from vqcompress.denoiser_calls.record import TeacherCall
from vqcompress.metrics import Energies, energies_by_image
from vqcompress.placement import execution_device
from vqcompress.reports.variant import Energy
from vqcompress.tensor_tree import to_device


@dataclass(frozen=True)
class Replayed:
    """Error and signal energies by timestep, from noise to image, and of each image over all calls.

    ``by_image`` is empty where the calls do not say which sample is of which image.
    """

    by_timestep: dict[float, Energies]
    by_image: tuple[Energy, ...]


def replay(
    denoiser: nn.Module,
    calls: Sequence[TeacherCall],
    progress: Callable[[int, int], None],
    batches: Sequence[int] = (1,),
) -> Replayed:
    """``denoiser`` on the recorded ``calls``, which were made batch by batch; ``batches`` has the images of each.

    All batches must be recorded whole, as many calls for each; otherwise they count as one image.
    """
    device = execution_device(denoiser)
    times: dict[float, Energies] = {}
    images: list[list[Energies]] = [[Energies(0.0, 0.0)] * count for count in batches]
    for index, call in enumerate(calls):
        with torch.inference_mode():
            output = first_output(denoiser(**to_device(call["kwargs"], device))).cpu()
        batch = index * len(batches) // len(calls)
        found = _energies(output, call, batches[batch])
        times[timestep_of(call)] = _add(times.get(timestep_of(call), Energies(0.0, 0.0)), *found)
        if len(found) == batches[batch]:
            images[batch] = [_add(old, new) for old, new in zip(images[batch], found, strict=True)]
        progress(index + 1, len(calls))
    by_image = tuple((each.error, each.signal) for batch in images for each in batch)
    known = all(signal > 0 for _, signal in by_image)
    return Replayed(dict(sorted(times.items(), reverse=_falls(calls))), by_image if known else ())


def _energies(output: torch.Tensor, call: TeacherCall, images: int) -> list[Energies]:
    """One for each image, or a single one of all where samples are no multiple of the images."""
    return energies_by_image(output, call["output"], images if len(output) % images == 0 else 1)


def _add(first: Energies, *others: Energies) -> Energies:
    each = (first, *others)
    return Energies(sum(one.error for one in each), sum(one.signal for one in each))


def timestep_of(call: TeacherCall) -> float:
    """The call's timestep; the samples of a batch share it. It is 0 for a denoiser without timesteps."""
    return float(call["timestep"].flatten()[0].nan_to_num(0.0))


def _falls(calls: Sequence[TeacherCall]) -> bool:
    """Whether timesteps fall along the trajectory; those of some flow models rise."""
    times = [timestep_of(call) for call in calls]
    return len(times) < 2 or next((a > b for a, b in pairwise(times) if a != b), True)
