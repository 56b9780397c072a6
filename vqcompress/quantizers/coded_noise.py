"""Noise in place of a code: errors as error feedback leaves them, without a search.

At a rate a code leaves column j of the target an error ``e_j`` of known size, as random as noise. Feedback then gives
the columns after it their answers, so a sweep over zero weights that adds ``e_j`` to every target makes an error with
the covariance of a real one, in a tenth of the time or less. What a rate costs the denoiser can so be measured before
anything is encoded.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vqcompress.quantizers.bit_allocation import MAX_RATE, LayerCost
from vqcompress.quantizers.error_feedback import Feedback


def column_errors(layer: LayerCost, bits: float) -> np.ndarray:
    """What is left in each column at ``bits`` bits a weight: squared error of one weight times the column's
    sensitivity, float64 ``[columns]``.

    Reverse water-filling within the layer, with propagated error; an ideal code for Gaussian weights. The layer's
    importance has no influence.
    """
    costs = layer.column_costs / layer.importance if layer.importance else layer.column_costs
    propagated = np.zeros_like(costs) if layer.propagated_error is None else layer.propagated_error.cpu().numpy()
    low, high = np.log2(costs.max()) / 2 - 40, np.log2(costs.max()) / 2 + 1
    for _ in range(50):
        level = (low + high) / 2
        low, high = (level, high) if _rates(costs, propagated, level).mean() > bits else (low, level)
    return (costs + 4.0**high * propagated) * 4.0 ** -_rates(costs, propagated, high)


def _rates(costs: np.ndarray, propagated: np.ndarray, level: float) -> np.ndarray:
    return np.clip(np.log2(costs / 4.0**level + propagated) / 2, 0, MAX_RATE)


def coded_noise(feedback: Feedback | None, errors: np.ndarray, outputs: int, generator: torch.Generator) -> Tensor:
    """Errors of ``outputs`` outputs, float32 ``[outputs, columns]``, with what ``errors`` (of `column_errors`) leave.

    Their expected cost ``tr(E H Eᵀ)`` is ``outputs * errors.sum()``. ``feedback`` must be that of columns that answer
    in full, without distortion; ``None`` stands for white inputs.
    """
    spread = torch.from_numpy(errors) if feedback is None else torch.from_numpy(errors) / feedback.sensitivity.cpu()
    noise = torch.randn(len(errors), outputs, generator=generator) * spread.sqrt().float()[:, None]
    if feedback is None:
        return noise.t()
    noise = noise.to(feedback.order.device)
    return feedback.sweep(torch.zeros_like(noise), lambda column, target: target + noise[column]).t()
