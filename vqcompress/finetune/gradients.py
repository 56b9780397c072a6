"""Random projections of the denoiser's output, sent back through it: what each layer reads, and what its outputs are worth.

A projection's square is on average the loss (`vqcompress.finetune.objective.random_projections`), so the second moment of its gradients is
the Gauss-Newton matrix, which says what small errors anywhere in the denoiser add to the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.calibration.importance import gradient_hook
from vqcompress.finetune.task import WholeDenoiser
from vqcompress.matrix_view import unfold_input

Use = Callable[[Tensor, Tensor], None]
"""``(inputs [groups, n, columns], gradients [groups, n, rows])`` of one layer, float32. A group is a unit, with all its branches, where
the layer keeps them apart; else it is all of them, which is as good on average, their projections being independent."""


def backward_projections(task: WholeDenoiser, uses: Mapping[str, Use], units: Sequence[int], seed: int) -> None:
    """Hand to ``uses``, layer by layer, what one projection of each of the training ``units`` makes of them.

    Layers that nothing reaches are not called. No parameter requires gradients afterwards.
    """
    generator, size = torch.Generator().manual_seed(seed), task.step_config.micro_batch
    task.denoiser.requires_grad_(False)
    with torch.enable_grad():
        for at in range(0, len(units), size):
            batch = task.train.batch(units[at : at + size], task.device)
            with ExitStack() as hooks:
                for name, use in uses.items():
                    layer = task.denoiser.get_submodule(name)
                    hooks.callback(layer.register_forward_hook(_hook(use, batch.branches, len(batch.weights))).remove)
                task.projection(batch, generator).backward()


def _hook(use: Use, branches: int, units: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        apart = len(inputs[0]) == branches * units

        def grouped(rows: Tensor) -> Tensor:
            """``[rows, width]`` -> ``[groups, n, width]``; units lie branch by branch."""
            rows = rows.float()
            return rows.unflatten(0, (branches, units, -1)).transpose(0, 1).flatten(1, 2) if apart else rows[None]

        def told(gradients: Tensor) -> None:
            use(grouped(unfold_input(inputs[0].detach(), layer)), grouped(gradients))

        return gradient_hook(layer, output, told)

    return hook
