"""GPTQ (Frantar et al. 2023, arXiv 2210.17323), the scalar baseline at its best.

With clip search, columns in order of falling activation ("act order") and static groups: grids are fixed from the
original weights before the sweep, in the natural order of columns, so nothing about the order is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqcompress.errors import RecipeError
from vqcompress.formats import ScalarSpec
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.error_feedback import prepare_feedback
from vqcompress.quantizers.quantizer import Quantizer
from vqcompress.quantizers.scalar_grid import check_group_size, scalar_spec, search_grid


@dataclass(frozen=True)
class GPTQSettings:
    """``group_size``: inputs per scale and zero; ``damping``: added to H's diagonal, relative to its mean."""

    group_size: int = 64
    damping: float = 1e-3

    def __post_init__(self) -> None:
        check_group_size(self.group_size)
        if not 0 < self.damping <= 1:
            raise RecipeError(f"damping is a fraction of H's mean diagonal in (0, 1], got {self.damping!r}")


def quantize_gptq(
    weight: Tensor, second_moment: SecondMoment | None, settings: GPTQSettings, bits: float, seed: int
) -> tuple[ScalarSpec, dict[str, Tensor]]:
    """Quantize ``weight [out, columns]``, float32, with ``bits`` (2 to 6, whole) a code.

    ``second_moment`` is E[x xᵀ], ``None`` the identity (which makes this `quantize_rtn`). Nothing is
    random, so ``seed`` has no influence. Raises `RecipeError` for other ``bits`` and for weights beyond the range of
    float16 scales, `CalibrationError` for a second moment that is not finite.
    """
    spec = scalar_spec(bits, settings.group_size)
    columns = weight.t().float()
    moment = SecondMoment(torch.eye(len(columns), device=columns.device)) if second_moment is None else second_moment
    feedback = prepare_feedback(moment.as_square(), settings.damping)
    grid = search_grid(columns, spec, feedback.sensitivity)
    codes = torch.empty(columns.shape, dtype=torch.int32, device=columns.device)

    def encode(column: int, target: Tensor) -> Tensor:
        codes[column] = grid.encode(column, target)
        return grid.decode(column, codes[column])

    feedback.sweep(columns, encode)
    return spec, grid.tensors(codes)


GPTQ = Quantizer(quantize_gptq, GPTQSettings)
