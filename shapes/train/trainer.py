"""Training loops: `train` for the text encoders and the decoder, `Trainer` for denoisers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from vqcompress.shapes.train.layout import LayoutHead
from vqcompress.shapes.train.schedule import Schedule

EMA_DECAY = 0.999
LOG_EVERY = 100  # steps

Log = Callable[[int, float], None]
"""``(step, loss)``"""


def mixed_precision() -> torch.autocast:
    """Autocast to bfloat16 on processors that multiply in it; elsewhere, where it is emulated and slow, no change."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16_products())


def has_bfloat16_products() -> bool:
    """Whether this processor has AMX or AVX512-BF16."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def train(
    module: torch.nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    schedule: Schedule,
    seed: int,
    log: Log,
    weight_decay: float,
) -> None:
    """Train ``module`` in place on ``loss_of(generator)``; its batches depend on ``seed`` and the step only.

    ``log`` gets the last loss every `LOG_EVERY` steps. The module is left in evaluation mode.
    """
    parameters = list(module.train().parameters())
    optimizer = _optimizer(parameters, weight_decay)
    schedule.restart_clock()
    while not schedule.done:
        loss = _step(optimizer, parameters, loss_of, schedule, seed)
        schedule.advance()
        if schedule.step % LOG_EVERY == 0:
            log(schedule.step, loss)
    module.eval()


class Trainer:
    """Trains a denoiser with a moving average of its weights. A subclass has the data and the loss.

    A ``head`` on the model is trained with it and not saved with the model.
    """

    def __init__(self, model: torch.nn.Module, schedule: Schedule, seed: int, head: LayoutHead | None = None) -> None:
        self.model, self.schedule, self.seed = model.train(), schedule, seed
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.head = head
        trained = torch.nn.ModuleList([model, *([head] if head else [])])
        self.trained = [p for p in trained.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.trained, weight_decay=0.01)

    def loss(self, generator: torch.Generator) -> Tensor:
        """The loss of one batch, drawn with ``generator``; a scalar with gradients."""
        raise NotImplementedError

    def run(self, log: Log, every: int, after_log: Callable[[], None]) -> None:
        """Train to the end of the schedule; every ``every`` steps call ``log(step, mean loss)`` and ``after_log()``."""
        self.schedule.restart_clock()
        losses: list[float] = []
        while not self.schedule.done:
            losses.append(self.train_step())
            if self.schedule.step % every == 0:
                log(self.schedule.step, sum(losses) / len(losses))
                losses.clear()
                after_log()

    def train_step(self) -> float:
        """One step of the optimizer and of the average; the loss."""
        loss = _step(self.optimizer, self.trained, self.loss, self.schedule, self.seed)
        self._update_average()
        self.schedule.advance()
        return loss

    def save(self, path: Path) -> None:
        """Write a checkpoint to ``path``, by rename."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "reader": self.head.state_dict() if self.head else None,
            "step": self.schedule.step,
            "spent": self.schedule.spent,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def restore(self, path: Path, keep_clock: bool = True) -> None:
        """Resume from the checkpoint at ``path``; without ``keep_clock``, start the schedule anew from its weights."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.head:
            self.head.load_state_dict(state["reader"])
        if keep_clock:
            self.schedule.step, self.schedule.spent = state["step"], state["spent"]

    @torch.no_grad()
    def averaged(self, model: torch.nn.Module) -> torch.nn.Module:
        """Copy frozen weights, and the moving average of the trained ones, into ``model`` and return it."""
        model.load_state_dict(self.model.state_dict())
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        for name, mean in zip(trained, self.average, strict=True):
            model.get_parameter(name).copy_(mean)
        return model.eval()

    @torch.no_grad()
    def _update_average(self) -> None:
        step = self.schedule.step
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.parameters, 1 - decay)


def _optimizer(parameters: Iterable[Tensor], weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)


def _step(
    optimizer: torch.optim.AdamW,
    parameters: list[Tensor],
    loss_of: Callable[[torch.Generator], Tensor],
    schedule: Schedule,
    seed: int,
) -> float:
    """One optimizer step at the schedule's rate, gradients clipped to a norm of 1; the loss before it."""
    loss = loss_of(torch.Generator().manual_seed(seed * 1_000_003 + schedule.step))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
