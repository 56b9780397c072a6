"""What every denoiser's training shares: AdamW, a moving average of the weights, checkpoints that a stopped run goes on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from vqcompress.shapes.layout import LayoutReader
from vqcompress.shapes.schedule import Schedule

EMA_DECAY = 0.999


class TrainingRun:
    """One run: the model, its moving average, the optimizer. A subclass has the data and the loss.

    A ``reader`` of the model learns with it and stays behind.
    """

    def __init__(
        self, model: torch.nn.Module, schedule: Schedule, seed: int, reader: LayoutReader | None = None
    ) -> None:
        self.model, self.schedule, self.seed = model.train(), schedule, seed
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.reader = reader
        learned = torch.nn.ModuleList([model, *([reader] if reader else [])])
        self.learned = [p for p in learned.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learned, betas=(0.9, 0.99), weight_decay=0.01, fused=True)

    def loss(self, generator: torch.Generator) -> torch.Tensor:
        """The loss of one batch, drawn with ``generator``; a scalar with gradients."""
        raise NotImplementedError

    def run(self, tell: Callable[[int, float], None], every: int, pause: Callable[[], None]) -> None:
        """Train to the end of the schedule; each `every` steps `tell(step, mean loss)` and `pause()` are called."""
        self.schedule.restart_clock()
        losses: list[float] = []
        while not self.schedule.done:
            losses.append(self._step())
            if self.schedule.step % every == 0:
                tell(self.schedule.step, sum(losses) / len(losses))
                losses.clear()
                pause()

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs, by rename."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "reader": self.reader.state_dict() if self.reader else None,
            "step": self.schedule.step,
            "spent": self.schedule.spent,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def restore(self, path: Path, keep_clock: bool = True) -> None:
        """Go on from `save`'s file; without `keep_clock`, with its weights and a new schedule."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.reader:
            self.reader.load_state_dict(state["reader"])
        if keep_clock:
            self.schedule.step, self.schedule.spent = state["step"], state["spent"]

    @torch.no_grad()
    def averaged(self, model: torch.nn.Module) -> torch.nn.Module:
        """Copy what is frozen and the moving average of the rest into `model` and return it."""
        model.load_state_dict(self.model.state_dict())
        learning = [name for name, p in self.model.named_parameters() if p.requires_grad]
        for name, mean in zip(learning, self.average, strict=True):
            model.get_parameter(name).copy_(mean)
        return model.eval()

    def _step(self) -> float:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.schedule.step)
        loss = self.loss(generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._move_average()
        self.schedule.advance()
        return loss.item()

    @torch.no_grad()
    def _move_average(self) -> None:
        step = self.schedule.step
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
