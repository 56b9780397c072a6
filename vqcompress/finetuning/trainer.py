"""The training loop of both stages: Adam steps, held-out measurements, the best state, and a state to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqcompress.errors import VQCompressError
from vqcompress.finetuning.learnable import Learnable
from vqcompress.progress import StageProgress

BETAS = (0.9, 0.99)
EPSILON = 1e-16  # gradients of a well-matched student are tiny: a usual epsilon would swallow them


@dataclass(frozen=True)
class Schedule:
    """How far and how long.

    ``rate`` is the largest step, relative to each tensor's RMS and to the root of the first held-out loss: moving
    parameters by a share ``r`` of their size moves the output by an error of the order of ``r²``, so steps must
    shrink with what there is to gain. It rises over ``warmup`` of the steps and falls along a cosine; that of
    matrices is ``matrices`` times as large. Training stops when ``patience`` measurements in a row, one every
    ``measure_every`` steps, bring no gain.
    """

    steps: int
    rate: float
    warmup: float = 0.05
    measure_every: int = 25
    patience: int = 8
    matrices: float = 1.0

    def factor(self, step: int) -> float:
        """Of the rate, at ``step`` (from 0)."""
        rising = max(1, int(self.warmup * self.steps))
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))


@dataclass(frozen=True)
class Outcome:
    """Held-out losses before and at the best state, the step of that state, steps made, and ``(step, loss)`` of all
    measurements."""

    before: float
    after: float
    best_step: int
    steps: int
    history: tuple[tuple[int, float], ...]


class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) with a rate for each tensor and plain tensors as its
    state.

    ``rates[name]`` is the step size of ``parameters[name]``, in the parameter's units.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> None:
        self.parameters, self.rates, self.count = parameters, rates, 0
        self.first = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update from the parameters' ``grad``, which is then dropped; all rates are multiplied by ``factor``."""
        self.count += 1
        small, large = 1 - BETAS[0] ** self.count, 1 - BETAS[1] ** self.count
        for name, parameter in self.parameters.items():
            if (grad := parameter.grad) is None:
                continue
            self.first[name].lerp_(grad, 1 - BETAS[0])
            self.second[name].lerp_(grad.square(), 1 - BETAS[1])
            length = (self.second[name] / large).sqrt_().add_(EPSILON)
            parameter.addcdiv_(self.first[name], length, value=-factor * self.rates[name] / small)
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs, under ``first/…``, ``second/…`` and ``count``."""
        moments = {f"first/{name}": value for name, value in self.first.items()}
        moments |= {f"second/{name}": value for name, value in self.second.items()}
        return {**moments, "count": torch.tensor(self.count)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.count = int(state["count"])
        for name in self.parameters:
            self.first[name].copy_(state[f"first/{name}"])
            self.second[name].copy_(state[f"second/{name}"])


class Trainer:
    """Minimise over the parameters of ``learnable``.

    ``gradient(step)`` leaves gradients in them and returns the training loss; ``measure()`` returns the held-out loss
    and is called with the parameters rounded as they will be stored. The start counts as a candidate, so the result
    is never worse than it on what is held out. ``keep(state)`` is given the full state every ``keep_seconds``.
    """

    def __init__(
        self,
        learnable: Learnable,
        gradient: Callable[[int], float],
        measure: Callable[[], float],
        schedule: Schedule,
        *,
        keep: Callable[[dict[str, Tensor]], None] | None = None,
        keep_seconds: float = 60.0,
        progress: StageProgress | None = None,
    ) -> None:
        self.learnable, self.gradient, self.measure, self.schedule = learnable, gradient, measure, schedule
        self.keep, self.keep_seconds, self.progress = keep, keep_seconds, progress
        rates = {name: self._rate(p) for name, p in learnable.parameters.items()}
        self.adam = Adam(learnable.parameters, rates)
        self.step, self.best, self.history = 0, learnable.values(), []  # type: tuple[int, dict[str, Tensor], list]
        self.best_step = 0

    def run(self) -> Outcome:
        """Train to the end of the schedule, or until held-out losses stop falling; the best state is then in place."""
        if not self.history:
            self._measure(0.0)
        kept = time.monotonic()
        while self.step < self.schedule.steps and not self._is_stale():
            loss = self.gradient(self.step)
            self._check(loss)
            self.adam.step(self.schedule.factor(self.step) * min(1.0, math.sqrt(self.history[0][1])))
            self.step += 1
            if self.step % self.schedule.measure_every == 0 or self.step == self.schedule.steps:
                self._measure(loss)
            self._report()
            if self.keep and time.monotonic() - kept >= self.keep_seconds:
                self.keep(self.state())
                kept = time.monotonic()
        self.learnable.load(self.best)
        return self.outcome()

    def outcome(self) -> Outcome:
        """What has come out so far."""
        losses = dict(self.history)
        return Outcome(
            losses[0], losses[self.best_step], self.best_step, self.step, tuple((s, loss) for s, loss in self.history)
        )

    def state(self) -> dict[str, Tensor]:
        """All that decides how the run goes on, as tensors."""
        state = {f"master/{name}": value for name, value in self.learnable.values().items()}
        state |= {f"best/{name}": value for name, value in self.best.items()}
        state |= {"history": torch.tensor(self.history, dtype=torch.float64), "step": torch.tensor(self.step)}
        return {**state, "best_step": torch.tensor(self.best_step), **self.adam.state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`."""
        names = self.learnable.parameters
        self.learnable.load({name: state[f"master/{name}"] for name in names})
        self.best = {name: state[f"best/{name}"].clone() for name in names}
        self.step, self.best_step = int(state["step"]), int(state["best_step"])
        self.history = [(int(step), loss) for step, loss in state["history"].tolist()]
        self.adam.restore(state)

    def _rate(self, parameter: Tensor) -> float:
        return self.schedule.rate * _size(parameter) * (self.schedule.matrices if parameter.ndim > 1 else 1.0)

    def _measure(self, training_loss: float) -> None:
        with self.learnable.rounded(), torch.no_grad():
            loss = self.measure()
        self._check(loss)
        self.history.append((self.step, loss))
        if loss <= min(past for _, past in self.history):
            self.best, self.best_step = self.learnable.values(), self.step

    def _report(self) -> None:
        if self.progress:
            before, best = self.history[0][1], min(past for _, past in self.history)
            change = f", {best / before - 1:+.1%}" if before else ""
            self.progress(self.step, self.schedule.steps, f"held-out error {best:.3e}{change}")

    def _is_stale(self) -> bool:
        since = [step for step, _ in self.history if step > self.best_step]
        return len(since) >= self.schedule.patience

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise VQCompressError(
                f"fine-tuning diverged at step {self.step}: the loss is {loss}; lower the learning rate, or "
                "train in float32"
            )


def _size(parameter: Tensor) -> float:
    """What the steps of a tensor are relative to: its RMS, for matrices over the root of the inputs that a row adds up.

    Adam moves all entries of a row alike, so their effects on an output add up in step, while those of the entries
    themselves go every which way (Yang et al. 2022, arXiv 2203.03466, table 3). A tensor that is all zeros, an
    untrained bias, moves in hundredths.
    """
    size = float(parameter.detach().square().mean().sqrt()) or 0.01
    return size / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else size
