"""The latents along a pipeline's own guided trajectory, and how far another's stray from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from vqcompress.denoiser_calls.call import timestep_of
from vqcompress.metrics import Energies, energies_by_image
from vqcompress.reports.variant import Trajectory


@dataclass
class LatentsRecord:
    """What the denoiser is given in each call, for the first ``count`` images or some more: whole batches.

    ``calls`` has (the batch's first image, timestep, latents ``[images, …]``, float32) batch by batch.
    """

    count: int
    images: int = 0
    calls: list[tuple[int, float, Tensor]] = field(default_factory=list)

    def wants(self, first: int) -> bool:
        """Whether the batch that starts with image ``first`` is among them."""
        return first < self.count

    def of_images(self, images: int) -> Callable[[dict[str, Any], Tensor], None]:
        """The listener of a batch of so many images."""
        batch, self.images = self.images, self.images + images

        def keep(arguments: dict[str, Any], output: Tensor) -> None:
            latents = next((value for value in arguments.values() if isinstance(value, Tensor)), None)
            if latents is not None and len(latents) % images == 0:
                time = float(timestep_of(arguments).flatten()[0].nan_to_num(0.0))
                # The halves of guidance are given the same latents.
                self.calls.append((batch, time, latents[:images].detach().to("cpu", torch.float32, copy=True)))

        return keep


def strayed(ours: LatentsRecord, originals: LatentsRecord) -> Trajectory:
    """Relative errors of ``ours`` against ``originals``; empty where the two did not make the same calls."""
    pairs = list(zip(ours.calls, originals.calls, strict=False))
    if not pairs or len(ours.calls) != len(originals.calls) or any(a[:2] != b[:2] for a, b in pairs):
        return Trajectory()
    sums: dict[float, list[float]] = defaultdict(lambda: [0.0, 0.0])
    last: list[Energies] = []
    for _, calls in groupby(pairs, key=lambda pair: pair[0][0]):
        for (_, time, mine), (_, _, theirs) in calls:
            energies = energies_by_image(mine, theirs, len(mine))
            sums[time][0] += sum(each.error for each in energies)
            sums[time][1] += sum(each.signal for each in energies)
        last += energies
    by_timestep = {time: error / signal if signal else 0.0 for time, (error, signal) in sums.items()}
    return Trajectory(by_timestep, tuple((each.error, each.signal) for each in last))
