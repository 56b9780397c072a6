"""What an error of each layer costs before importance: sensitivities and energies of its columns, group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vqcompress.matrix_view import to_matrix
from vqcompress.quantizers.bit_allocation import LayerCost
from vqcompress.quantizers.error_feedback import Feedback, prepare_feedback
from vqcompress.stages.recording import moment_of
from vqcompress.stages.run import Run, dense_bits

Energy = Callable[[Tensor], Tensor]
"""``weight [out, columns] -> [columns]``, the mean square that a code has to span in each column."""


@dataclass(frozen=True)
class CostedLayer:
    """A layer's cost at importance 1, and the feedback of its inputs (None: white inputs)."""

    name: str
    cost: LayerCost
    feedback: Feedback | None


def costed_layers(
    run: Run, component: str, layers: list[str], groups: dict[str, str], energy: Energy, feeds_back: bool = True
) -> Iterator[CostedLayer]:
    """All of ``layers``, those with one input together: a second moment is factored once and then forgotten.

    Without ``feeds_back`` errors of columns stay where they are made, and a column's sensitivity is H's diagonal.
    """
    for key in dict.fromkeys(groups.get(layer) for layer in layers):
        moment = moment_of(run, component, key)
        feedback = None if moment is None or not feeds_back else prepare_feedback(moment).to("cpu")
        for layer in (name for name in layers if groups.get(name) == key):
            weight = to_matrix(run.weight(component, layer)).float()
            white = torch.ones(weight.shape[1])
            alone = white if moment is None else moment.diagonal().cpu()
            sensitivity = alone if feedback is None else feedback.sensitivity
            propagated = None if feedback is None else feedback.propagated_error()
            cost = LayerCost(len(weight), sensitivity, energy(weight), 1.0, propagated, dense_bits(weight))
            yield CostedLayer(layer, cost, feedback)
