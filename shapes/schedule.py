"""How far a training run has come, by steps or by the clock, and the learning rate that follows from it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass
class Schedule:
    """Warm-up, then a cosine to zero over `steps`, or over `seconds` of training time where steps is None."""

    peak: float
    warmup: int = 300
    steps: int | None = None
    seconds: float | None = None
    step: int = 0
    spent: float = 0.0
    _mark: float = field(default_factory=time.monotonic)

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        return self.step / self.steps if self.steps else self.spent / self.seconds

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        return self.progress >= 1.0

    def rate(self) -> float:
        """Learning rate of the next step."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(self.progress, 1.0)))
        return self.peak * cosine * min(1.0, (self.step + 1) / self.warmup)

    def advance(self) -> None:
        """Count one step and the time since the last one."""
        now = time.monotonic()
        self.spent += now - self._mark
        self._mark = now
        self.step += 1

    def restart_clock(self) -> None:
        """Leave the time until now out of the count."""
        self._mark = time.monotonic()
