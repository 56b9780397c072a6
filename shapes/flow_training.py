"""Train the mixture of experts: a rectified flow (arXiv 2209.03003) from class labels, experts kept in balance."""

from __future__ import annotations

import torch

from vqcompress.models.mixture import Router, Routing
from vqcompress.shapes.fast_arithmetic import fast_arithmetic
from vqcompress.shapes.layout import LayoutReader
from vqcompress.shapes.schedule import Schedule
from vqcompress.shapes.singles import LabelledSet
from vqcompress.shapes.training_run import TrainingRun

BATCH = 64
LABEL_DROP = 0.1
BALANCE = 0.01  # weight of the routers' balance loss, as in DiT-MoE's own training


class FlowTraining(TrainingRun):
    """A model that takes (latents, times in 0..1, labels) learns the velocity from data to noise."""

    def __init__(self, model: torch.nn.Module, data: LabelledSet, schedule: Schedule, seed: int) -> None:
        middle = model.blocks[len(model.blocks) // 2 - 1]
        super().__init__(model, schedule, seed, LayoutReader(middle, model.config["hidden_size"]))
        self.data = data
        model.y_embedder.eval()  # labels are dropped here, from the step's own generator
        self._balance: list[torch.Tensor] = []
        for part in model.modules():
            if isinstance(part, Router):
                part.register_forward_hook(self._note)

    def loss(self, generator: torch.Generator) -> torch.Tensor:
        clean, labels, layouts = self.data.batch(BATCH, LABEL_DROP, generator)
        noise = torch.randn(clean.shape, generator=generator)
        time = torch.randn(BATCH, generator=generator).sigmoid()  # the middle of the way is the hardest
        mixed = torch.lerp(clean, noise, time[:, None, None, None])
        self._balance.clear()
        with fast_arithmetic():
            velocity = self.model(mixed, time, labels)
        error = (velocity.float() - (noise - clean)).square().mean()
        return error + BALANCE * torch.stack(self._balance).mean() + self.reader.loss(layouts)

    def _note(self, router: Router, args: tuple, routing: Routing) -> None:
        if routing.balance_loss is not None:
            self._balance.append(routing.balance_loss)
