"""Round to nearest on a clipped grid: the scalar baseline that looks at each weight alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqcompress.formats import ScalarSpec
from vqcompress.formats.scalar import FLOAT_SCALES
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.quantizer import Quantizer
from vqcompress.quantizers.scalar_grid import check_group_size, check_scale_bits, scalar_spec, search_grid
from vqcompress.quantizers.setting_values import check_types


@dataclass(frozen=True)
class RTNSettings:
    """``group_size``: inputs that share one scale and zero (one code) in each output; ``scale_bits``: of a scale
    (`vqcompress.formats.scalar`)."""

    group_size: int = 64
    scale_bits: int = FLOAT_SCALES

    def __post_init__(self) -> None:
        check_types("rtn", self)
        check_group_size(self.group_size)
        check_scale_bits(self.scale_bits)


def quantize_rtn(
    weight: Tensor, second_moment: SecondMoment | None, settings: RTNSettings, bits: float, seed: int
) -> tuple[ScalarSpec, dict[str, Tensor]]:
    """Quantize ``weight [out, columns]``, float32, with ``bits`` (2 to 6, whole) a code.

    Neither ``second_moment`` nor ``seed`` has any influence: this is the baseline without data. Raises `RecipeError`
    for other ``bits`` and for weights beyond the range of float16 scales.
    """
    spec = scalar_spec(bits, settings.group_size, settings.scale_bits)
    columns = weight.t().float()
    grid = search_grid(columns, spec, columns.new_ones(len(columns)))
    size = grid.spec.group_size
    codes = [grid.encode(start, columns[start : start + size]) for start in range(0, len(columns), size)]
    return grid.spec, grid.tensors(torch.cat(codes) if codes else columns.int())


RTN = Quantizer(quantize_rtn, RTNSettings)
