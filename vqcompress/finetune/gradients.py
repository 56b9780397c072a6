"""Random projections of the denoiser's output, sent back through it: what each layer reads, and what its outputs are worth.

A projection's square is on average the loss (`vqcompress.finetune.objective.random_projections`), so the second moment of its gradients is
the Gauss-Newton matrix, which says what small errors anywhere in the denoiser add to the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.denoiser_calls.backward_projection import Watch, backward_projection, frozen
from vqcompress.finetune.task import WholeDenoiser
from vqcompress.matrix_view import unfold_input

Use = Callable[[Tensor, Tensor], None]
"""``(inputs [groups, n, columns], gradients [groups, n, rows])`` of one layer, float32. A group is a unit, with all its branches, where
the layer keeps them apart; else it is all of them, which is as good on average, their projections being independent."""


def backward_projections(task: WholeDenoiser, uses: Mapping[str, Use], units: Sequence[int], seed: int) -> None:
    """Hand to ``uses``, layer by layer, what one projection of each of the training ``units`` makes of them.

    Layers that nothing reaches are not called.
    """
    generator, size = torch.Generator().manual_seed(seed), task.step_config.micro_batch
    with frozen(task.denoiser):
        for at in range(0, len(units), size):
            batch = task.train.batch(units[at : at + size], task.device)
            watches = {name: _watch(use, batch.branches, len(batch.weights)) for name, use in uses.items()}
            backward_projection(task.denoiser, watches, partial(task.projection, batch, generator))


def _watch(use: Use, branches: int, units: int) -> Watch:
    def watch(layer: nn.Module, arguments: tuple[Any, ...]) -> Callable[[Tensor], None]:
        read = arguments[0].detach()
        apart = len(read) == branches * units

        def grouped(rows: Tensor) -> Tensor:
            """``[rows, width]`` -> ``[groups, n, width]``; units lie branch by branch."""
            rows = rows.float()
            return rows.unflatten(0, (branches, units, -1)).transpose(0, 1).flatten(1, 2) if apart else rows[None]

        return lambda gradients: use(grouped(unfold_input(read, layer)), grouped(gradients))

    return watch
