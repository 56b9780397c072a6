"""Train the class-conditional mixture of experts as a rectified flow (Liu et al. 2022, arXiv:2209.03003)."""

from __future__ import annotations

import torch
from torch import Tensor

from vqcompress.models.mixture import Router, Routing
from vqcompress.shapes.train.dataset import LabeledLatents
from vqcompress.shapes.train.layout import LayoutHead
from vqcompress.shapes.train.schedule import Schedule
from vqcompress.shapes.train.trainer import Trainer, mixed_precision

BATCH = 64
LABEL_DROP = 0.1
BALANCE = 0.01  # weight of the routers' balance loss, as in DiT-MoE's own training


class FlowTrainer(Trainer):
    """Trains a model that takes (latents, times in 0..1, labels) to predict the velocity from data to noise."""

    def __init__(self, model: torch.nn.Module, data: LabeledLatents, schedule: Schedule, seed: int) -> None:
        middle = model.blocks[len(model.blocks) // 2 - 1]
        super().__init__(model, schedule, seed, LayoutHead(middle, model.config["hidden_size"]))
        self.data = data
        model.y_embedder.eval()  # labels are dropped by `LabeledLatents.batch`, from the step's own generator
        self._balance: list[Tensor] = []
        for part in model.modules():
            if isinstance(part, Router):
                part.register_forward_hook(self._record_balance)

    def loss(self, generator: torch.Generator) -> Tensor:
        clean, labels, layouts = self.data.batch(BATCH, LABEL_DROP, generator)
        noise = torch.randn(clean.shape, generator=generator)
        time = torch.randn(BATCH, generator=generator).sigmoid()  # more often in the middle, which is the hardest
        mixed = torch.lerp(clean, noise, time[:, None, None, None])
        self._balance.clear()
        with mixed_precision():
            velocity = self.model(mixed, time, labels)
        error = (velocity.float() - (noise - clean)).square().mean()
        return error + BALANCE * torch.stack(self._balance).mean() + self.head.loss(layouts)

    def _record_balance(self, router: Router, args: tuple, routing: Routing) -> None:
        if routing.balance_loss is not None:
            self._balance.append(routing.balance_loss)
