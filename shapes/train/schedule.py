"""Progress of a training run, by steps or by the clock, and its learning rate."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

FADE = 0.7  # a cycle's peak rate relative to the previous one's


@dataclass
class Schedule:
    """Warm-up, then a cosine to zero over ``steps``, or over ``seconds`` of training time where there are no
    steps.

    The cosine repeats ``cycles`` times, each time from a lower peak (warm restarts, Loshchilov & Hutter 2017,
    arXiv:1608.03983). Each cycle ends in a finished model, and a longer run continues a shorter one. ``until`` ends the
    run at that step, at the rates of the whole schedule.
    """

    peak: float
    warmup: int = 300
    steps: int | None = None
    seconds: float = math.inf
    cycles: int = 1
    until: int | None = None
    step: int = 0
    spent: float = 0.0
    _mark: float = field(default_factory=time.monotonic)

    @property
    def cycle(self) -> int:
        """Which cycle the next step belongs to, from 0."""
        done = self.step // self.steps if self.steps else int(self.spent // self.seconds)
        return min(done, self.cycles - 1)

    @property
    def cycle_progress(self) -> float:
        """0 at the start of a cycle, 1 at the end of the last."""
        if self.steps:
            return (self.step - self.cycle * self.steps) / self.steps
        return self.spent / self.seconds - self.cycle

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        return (self.cycle + self.cycle_progress) / self.cycles

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        return self.progress >= 1.0 or (self.until is not None and self.step >= self.until)

    def rate(self) -> float:
        """Learning rate of the next step."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(self.cycle_progress, 1.0)))
        since = self.step - self.cycle * self.steps if self.steps else self.step
        return self.peak * FADE**self.cycle * cosine * min(1.0, (since + 1) / self.warmup)

    def advance(self) -> None:
        """Count one step and the time since the last one."""
        now = time.monotonic()
        self.spent += now - self._mark
        self._mark = now
        self.step += 1

    def restart_clock(self) -> None:
        """Exclude the time until now."""
        self._mark = time.monotonic()
