"""The training task of the whole denoiser: to match the teacher's recorded outputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from vqcompress.denoiser_calls.call import first_output
from vqcompress.denoiser_calls.dataset import Batch
from vqcompress.finetuning.context import StepConfig, TuningContext
from vqcompress.finetuning.dataset import DistillationData
from vqcompress.finetuning.objective import (
    has_noise_levels,
    measured_weights,
    min_snr_weights,
    noise_levels,
    random_projections,
    sample_losses,
    trajectory_weights,
)
from vqcompress.placement import execution_device, saved_on_host
from vqcompress.workers import Workers


class WholeDenoiser:
    """``gradient`` and ``measure`` for `Trainer`, over training and held-out samples.

    Losses are relative to those of a denoiser whose output is zero, over all held-out samples. Each process of
    ``workers`` takes its share of a step.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        distillation: DistillationData,
        step_config: StepConfig,
        workers: Workers | None = None,
    ) -> None:
        self.denoiser, self.step_config = denoiser, step_config
        self.train, self.held_out = distillation.train, distillation.held_out
        self.workers = workers or Workers()
        self.device = execution_device(denoiser)
        self.signal = self._signal()

    def gradient(self, step: int) -> float:
        """Gradients of the loss over the samples of ``step``, summed over all processes; returns the loss."""
        chosen = self.chosen(step)
        total = torch.zeros((), device=self.device)
        for indices in self._micro_batches(chosen):
            batch = self.train.batch(indices, self.device)
            with saved_on_host(self.denoiser):
                loss = (self.losses(batch) * batch.weights).sum() / (len(chosen) * self.signal)
                loss.backward()
            total += loss.detach()
        self._share(total)
        return float(total)

    def measure(self) -> float:
        """The loss over all held-out samples."""
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for indices in self._micro_batches(range(len(self.held_out))):
            batch = self.held_out.batch(indices, self.device)
            total += (self.losses(batch) * batch.weights).sum().double()
        self.workers.all_reduce([total])
        return float(total) / (len(self.held_out) * self.signal)

    def held_out_errors(self) -> Tensor:
        """The loss of every held-out sample, unweighted, ``[held-out samples]``."""
        return torch.cat([self.losses(self.held_out.batch([i], self.device)).cpu() for i in range(len(self.held_out))])

    def losses(self, batch: Batch) -> Tensor:
        """The student's `sample_losses` on ``batch``, ``[samples]``."""
        return self._losses_of(self.output(batch), batch)

    def projection(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The weighted sum of `random_projections` of the student's output: a scalar with a graph.

        Weights are the roots of those of the samples' losses.
        """
        output = self.output(batch)
        values = random_projections(
            output, batch.branches, self.step_config.guidance, self.step_config.guided, generator
        )
        return (values * (batch.weights / self.signal).sqrt()).sum()

    def output(self, batch: Batch) -> Tensor:
        """What the student returns for ``batch``."""
        narrow = self.step_config.dtype != torch.float32
        with torch.autocast(self.device.type, self.step_config.dtype) if narrow else nullcontext():
            return first_output(self.denoiser(**batch.kwargs))

    def chosen(self, step: int) -> list[int]:
        """The training samples of ``step``: every epoch is a permutation of all, drawn from the seed."""
        count, size = len(self.train), min(self.step_config.batch_size, len(self.train))
        first = step * size
        wanted = range(first, first + size)
        orders = {
            epoch: _permutation(count, self.step_config.seed, epoch) for epoch in {place // count for place in wanted}
        }
        return [orders[place // count][place % count] for place in wanted]

    def _micro_batches(self, chosen: Sequence[int]) -> list[list[int]]:
        """This process's share of ``chosen``."""
        own, size = list(chosen)[self.workers.rank :: self.workers.world_size], self.step_config.micro_batch
        return [own[at : at + size] for at in range(0, len(own), size)]

    def _losses_of(self, output: Tensor, batch: Batch) -> Tensor:
        return sample_losses(output, batch.target, batch.branches, self.step_config.guidance, self.step_config.guided)

    def _share(self, total: Tensor) -> None:
        """Sum the gradients over all processes; a parameter without a gradient here may have one elsewhere."""
        learning = [p for p in self.denoiser.parameters() if p.requires_grad]
        if self.workers.world_size > 1:
            for parameter in learning:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self.workers.all_reduce([*(p.grad for p in learning if p.grad is not None), total])

    def _signal(self) -> float:
        """The mean loss of an output of zeros."""
        total = 0.0
        for batch in map(self.held_out.batch, ([i] for i in range(len(self.held_out)))):
            total += float((self._losses_of(torch.zeros_like(batch.target), batch) * batch.weights.cpu()).sum())
        return total / len(self.held_out)


def make_task(denoiser: nn.Module, context: TuningContext) -> WholeDenoiser:
    """``denoiser`` as it is, packed or dense, with the loss that the recipe asks for."""
    return WholeDenoiser(denoiser, weighted(denoiser, context), context.step_config, context.workers)


def weighted(denoiser: nn.Module, context: TuningContext) -> DistillationData:
    """The dataset with the timestep weights of the recipe; ``measured`` runs the untrained student on held-out
    samples."""
    data, scheduler = context.distillation, context.scheduler
    train, held_out = data.train.timesteps, data.held_out.timesteps
    weighting = context.training.weighting or ("trajectory" if has_noise_levels(scheduler) else "uniform")
    if weighting == "uniform":
        return data
    if weighting == "min-snr":
        by_snr = [min_snr_weights(*noise_levels(scheduler, timesteps)) for timesteps in (train, held_out)]
        return _with_weights(data, *by_snr)
    if weighting == "trajectory":
        weights = trajectory_weights(*noise_levels(scheduler, train))
        spread = _of_nearest(held_out, train, weights)
        return _with_weights(data, weights, spread / spread.mean())
    with torch.no_grad():
        errors = WholeDenoiser(denoiser, data, context.step_config).held_out_errors()
    weights = measured_weights(held_out, errors)
    spread = _of_nearest(train, held_out, weights)
    return _with_weights(data, spread / spread.mean(), weights)


def _with_weights(data: DistillationData, train: Tensor, held_out: Tensor) -> DistillationData:
    return DistillationData(replace(data.train, weights=train), replace(data.held_out, weights=held_out))


def _of_nearest(timesteps: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """The value of the nearest known timestep, for each of ``timesteps``."""
    distinct = known.unique()
    means = torch.stack([values[known == time].mean() for time in distinct])
    return means[(timesteps[:, None] - distinct).abs().argmin(1)]


def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    return torch.randperm(count, generator=generator).tolist()
