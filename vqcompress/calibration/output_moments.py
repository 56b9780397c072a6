"""What errors of a layer's outputs cost the denoiser's output together.

An error ``δ [outputs]`` in one sample of a layer's output adds ``δᵀ G δ``, on average, to the squared error of the
denoiser's output. The output moment ``G`` is the second moment of a random projection's gradients there:
`vqcompress.calibration.importance` estimates its trace, and a quantizer that feeds errors back between outputs needs
all of it (Tseng, Sun, De Sa 2025, YAQA, arXiv 2505.22988, section 3: the output side of the Hessian).
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
    """Yield every layer of ``outputs`` (layer -> number of outputs) with its output moment.

    That is float32 ``[outputs, outputs]``, of any scale. ``calls`` are keyword arguments of recorded denoiser calls. A
    pass over the calls records as many layers as ``memory_budget`` bytes hold moments of, and at least one. Layers that
    no gradient reaches get zeros.
    """
    for names in in_order_within({name: 4 * side**2 for name, side in outputs.items()}, memory_budget):
        moments: dict[str, Tensor] = {}

        def add(name: str, gradients: Tensor, moments: dict[str, Tensor] = moments) -> None:
            samples = gradients.float()
            if name not in moments:
                moments[name] = samples.new_zeros(2 * samples.shape[1:])
            moments[name].addmm_(samples.t(), samples)

        backward_projections(denoiser, names, calls, seed, add, progress)
        for name in names:
            found = moments.pop(name, None)
            yield name, torch.zeros(outputs[name], outputs[name]) if found is None else found.cpu()
