"""Stage 2: the whole denoiser against the teacher's recorded outputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from vqcompress.denoiser_calls.call import first_output
from vqcompress.denoiser_calls.dataset import Batch, DistillationDataset
from vqcompress.finetune.objective import random_projections, unit_losses
from vqcompress.workers import Workers


@dataclass(frozen=True)
class StepConfig:
    """What a step trains on: units a step, units at once in memory, guidance in the loss, autocast dtype, seed."""

    batch: int
    micro_batch: int
    guidance: float
    guided: float
    seed: int
    dtype: torch.dtype = torch.float32


class WholeDenoiser:
    """``gradient`` and ``measure`` for `Trainer`, over training and held-out units.

    Losses are relative to those of a denoiser that puts out nothing, over all held-out units. Of each step every process of ``workers``
    takes its share.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        train: DistillationDataset,
        held_out: DistillationDataset,
        step_config: StepConfig,
        workers: Workers | None = None,
    ) -> None:
        self.denoiser, self.train, self.held_out, self.step_config = denoiser, train, held_out, step_config
        self.workers = workers or Workers()
        self.device = next(denoiser.parameters()).device
        self.signal = self._signal()

    def gradient(self, step: int) -> float:
        """Gradients of the loss over the units of ``step``, summed over all processes; returns the loss."""
        chosen = self.chosen(step)
        total = torch.zeros((), device=self.device)
        for indices in self._parts(chosen):
            batch = self.train.batch(indices, self.device)
            loss = (self._losses(batch) * batch.weights).sum() / (len(chosen) * self.signal)
            loss.backward()
            total += loss.detach()
        self._share(total)
        return float(total)

    def measure(self) -> float:
        """The loss over all held-out units."""
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for indices in self._parts(range(len(self.held_out))):
            batch = self.held_out.batch(indices, self.device)
            total += (self._losses(batch) * batch.weights).sum().double()
        self.workers.all_reduce([total])
        return float(total) / (len(self.held_out) * self.signal)

    def unit_errors(self) -> torch.Tensor:
        """The loss of every held-out unit, unweighted, ``[held-out units]``."""
        return torch.cat([self._losses(self.held_out.batch([i], self.device)).cpu() for i in range(len(self.held_out))])

    def projection(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """The sum of `random_projections` of the student's output for the units of ``batch``, weighted as its losses are: a scalar with a graph."""
        output = self._output(batch)
        values = random_projections(
            output, batch.branches, self.step_config.guidance, self.step_config.guided, generator
        )
        return (values * (batch.weights / self.signal).sqrt()).sum()

    def chosen(self, step: int) -> list[int]:
        """The training units of ``step``: every epoch is a permutation of all, drawn from the seed."""
        count, size = len(self.train), min(self.step_config.batch, len(self.train))
        first = step * size
        wanted = range(first, first + size)
        orders = {
            epoch: _permutation(count, self.step_config.seed, epoch) for epoch in {place // count for place in wanted}
        }
        return [orders[place // count][place % count] for place in wanted]

    def _parts(self, chosen: Sequence[int]) -> list[list[int]]:
        mine = list(chosen)[self.workers.rank :: self.workers.world_size]
        return [
            mine[at : at + self.step_config.micro_batch] for at in range(0, len(mine), self.step_config.micro_batch)
        ]

    def _losses(self, batch: Batch) -> torch.Tensor:
        return self._unit_losses(self._output(batch), batch)

    def _output(self, batch: Batch) -> torch.Tensor:
        narrow = self.step_config.dtype != torch.float32
        with torch.autocast(self.device.type, self.step_config.dtype) if narrow else nullcontext():
            return first_output(self.denoiser(**batch.kwargs))

    def _unit_losses(self, output: torch.Tensor, batch: Batch) -> torch.Tensor:
        return unit_losses(output, batch.target, batch.branches, self.step_config.guidance, self.step_config.guided)

    def _share(self, total: torch.Tensor) -> None:
        """Sum the gradients over all processes; a parameter that no unit reached here may have been reached elsewhere."""
        learning = [p for p in self.denoiser.parameters() if p.requires_grad]
        if self.workers.world_size > 1:
            for parameter in learning:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self.workers.all_reduce([*(p.grad for p in learning if p.grad is not None), total])

    def _signal(self) -> float:
        silent = 0.0
        for batch in map(self.held_out.batch, ([i] for i in range(len(self.held_out)))):
            silent += float((self._unit_losses(torch.zeros_like(batch.target), batch) * batch.weights.cpu()).sum())
        return silent / len(self.held_out)


def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    return torch.randperm(count, generator=generator).tolist()
