"""Coordinate descent over columns: each is coded again for what the errors of all others leave it to make up for."""

from __future__ import annotations

import torch
from torch import Tensor

from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.error_feedback import EncodeColumn

BLOCK = 128  # columns whose changes are applied lazily to the gradient of all others in one matrix product


def descend(
    weight: Tensor,
    decoded: Tensor,
    second_moment: SecondMoment,
    encode: EncodeColumn,
    output_moment: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One pass of cyclic coordinate descent over columns (``weight`` and ``decoded`` are ``[columns, out]``, float32).

    With all other columns fixed, the objective ``tr((W - Ŵ) H (W - Ŵ)ᵀ)`` in column j is ``H_jj |v - t|²`` plus a
    constant, with target ``t = ŵ_j + sum_i H_ji (w_i - ŵ_i) / H_jj``. A new code is accepted only where it is closer to
    the target than the old one, so the pass never raises the objective. ``output_moment [out, out]`` measures how close
    (`squared_error`). Returns the decoded copy and a mask ``[columns]`` of the accepted columns, whose new codes the
    caller keeps.
    """
    if second_moment.samples is not None:
        return _descend_by_samples(weight, decoded.clone(), second_moment, encode, output_moment)
    moment, decoded = second_moment.dense().float(), decoded.clone()
    accepted = torch.zeros(len(decoded), dtype=torch.bool)
    gradient = moment @ (weight - decoded)
    for start in range(0, len(decoded), BLOCK):
        stop = min(start + BLOCK, len(decoded))
        changes = torch.zeros_like(decoded[start:stop])
        for j in range(start, stop):
            if moment[j, j] <= 0:
                continue
            pull = gradient[j] - moment[j, start:stop] @ changes
            target = decoded[j] + pull / moment[j, j]
            candidate = encode(j, target)
            if squared_error(candidate - target, output_moment) < squared_error(decoded[j] - target, output_moment):
                changes[j - start] = candidate - decoded[j]
                decoded[j], accepted[j] = candidate, True
        gradient -= moment[:, start:stop] @ changes
    return decoded, accepted


def _descend_by_samples(
    weight: Tensor, decoded: Tensor, moment: SecondMoment, encode: EncodeColumn, output_moment: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`descend`, in ``decoded``, with the error on the samples, ``X (W - Ŵ) [s, out]``, in place of a gradient."""
    accepted = torch.zeros(len(decoded), dtype=torch.bool)
    samples, diagonal = moment.values, moment.diagonal()
    error = samples @ (weight - decoded)
    for j in range(len(decoded)):
        if diagonal[j] <= 0:
            continue
        pull = samples[:, j] @ error + moment.ridge * (weight[j] - decoded[j])
        target = decoded[j] + pull / diagonal[j]
        candidate = encode(j, target)
        if squared_error(candidate - target, output_moment) < squared_error(decoded[j] - target, output_moment):
            error -= torch.outer(samples[:, j], candidate - decoded[j])
            decoded[j], accepted[j] = candidate, True
    return decoded, accepted


def squared_error(error: Tensor, output_moment: Tensor | None = None) -> float:
    """``eᵀ G e`` of one column's error ``[out]``, with ``output_moment`` for G ``[out, out]``, by default the
    identity."""
    return float(error.square().sum() if output_moment is None else error @ output_moment @ error)


def damped(output_moment: Tensor, share: float) -> Tensor:
    """``output_moment [out, out]`` as float32 with a mean diagonal of 1, ``share`` of that added: positive definite."""
    moment = output_moment.double()
    moment = moment / (float(moment.diagonal().mean()) or 1.0)
    moment.diagonal().add_(share)
    return moment.float()
