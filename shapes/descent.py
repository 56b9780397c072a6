"""The descent that the text encoders' and the decoder's training share."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vqcompress.shapes.schedule import Schedule

TELL_EVERY = 100


def descend(
    module: torch.nn.Module,
    loss_of: Callable[[torch.Generator], torch.Tensor],
    schedule: Schedule,
    seed: int,
    tell: Callable[[int, float], None],
    weight_decay: float,
) -> None:
    """Train ``module`` in place with AdamW on ``loss_of(generator)``, whose batches follow from ``seed`` and the step alone.

    ``tell(step, loss)`` hears of the progress. Gradients are clipped to a norm of 1; the module is left in evaluation mode.
    """
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
    schedule.restart_clock()
    while not schedule.done:
        loss = loss_of(torch.Generator().manual_seed(seed * 1_000_003 + schedule.step))
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.advance()
        if schedule.step % TELL_EVERY == 0:
            tell(schedule.step, loss.item())
    module.eval()
