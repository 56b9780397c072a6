"""What errors of a layer's outputs cost the denoiser's output together.

For errors ``δ [outputs]`` in the rows that a layer puts out, the squared error of the denoiser's output is on average ``δᵀ G δ`` a row, ``G``
being the second moment of a random projection's gradients there: `vqcompress.calibration.importance` asks for its trace, a
quantizer that feeds errors back between outputs for all of it (Tseng, Sun, De Sa 2025, YAQA, arXiv 2505.22988, section 3, who
call it the output side of the Hessian).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.calibration.importance import backward_projections
from vqcompress.calibration.passes import in_order_within
from vqcompress.progress import StageProgress


def record_output_moments(
    denoiser: nn.Module,
    outputs: Mapping[str, int],
    calls: Sequence[dict[str, Any]],
    seed: int,
    memory_budget: int,
    progress: StageProgress | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yields every layer of ``outputs`` (layer -> number of outputs) with its moment, float32 ``[outputs, outputs]``, of any scale.

    ``calls`` are keyword arguments of recorded denoiser calls. As many layers at once as ``memory_budget`` bytes hold moments of, at
    least one; each such group is a pass over the calls. Layers that nothing reaches get zeros.
    """
    for names in in_order_within({name: 4 * side**2 for name, side in outputs.items()}, memory_budget):
        moments: dict[str, Tensor] = {}

        def add(name: str, gradients: Tensor, moments: dict[str, Tensor] = moments) -> None:
            rows = gradients.float()
            if name not in moments:
                moments[name] = rows.new_zeros(2 * rows.shape[1:])
            moments[name].addmm_(rows.t(), rows)

        backward_projections(denoiser, names, calls, seed, add, progress)
        for name in names:
            yield name, moments.pop(name, torch.zeros(outputs[name], outputs[name])).cpu()
