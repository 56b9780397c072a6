"""GPTQ (Frantar et al. 2023, arXiv 2210.17323), the scalar baseline at its best.

With clip search, columns in order of falling activation ("act order") and static groups: grids are fixed from the
original weights before the sweep, in the natural order of columns, so nothing about the order is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vqcompress.formats import ScalarSpec
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.error_feedback import Feedback, prepare_feedback
from vqcompress.quantizers.quantizer import Quantizer
from vqcompress.quantizers.scalar_grid import check_group_size, check_scale_bits, scalar_spec, search_grid
from vqcompress.quantizers.setting_values import SHARE, check_setting, check_types

DAMPINGS = (1e-2, 1e-3, 1e-4)
TRIED = 64  # outputs


@dataclass(frozen=True)
class GPTQSettings:
    """``group_size``: inputs per scale and zero; ``scale_bits``: of a scale (`vqcompress.formats.scalar`);
    ``damping``: added to H's diagonal, relative to its mean.

    Groups of 32 with 6-bit scales take about as many bits as the usual groups of 64 with float16 scales. ``"auto"``
    encodes a few of the outputs with each of `DAMPINGS` and takes the one with the least error: more damping keeps
    targets within their grids, less follows the inputs. ``zero_forcing``: the paper's feedback, which takes the columns
    still to come for exact; else it counts on what their grids can take up (`vqcompress.quantizers.error_feedback`).
    """

    group_size: int = 32
    scale_bits: int = 6
    damping: float | Literal["auto"] = "auto"
    zero_forcing: bool = False

    def __post_init__(self) -> None:
        check_types("gptq", self)
        check_group_size(self.group_size)
        check_scale_bits(self.scale_bits)
        share = self.damping
        check_setting("gptq", "damping", share, share == "auto" or 0 < share <= 1, f"{SHARE}, or 'auto'")


def quantize_gptq(
    weight: Tensor, second_moment: SecondMoment | None, settings: GPTQSettings, bits: float, seed: int
) -> tuple[ScalarSpec, dict[str, Tensor]]:
    """Quantize ``weight [out, columns]``, float32, with ``bits`` (2 to 6, whole) a code.

    ``second_moment`` is E[x xᵀ], ``None`` the identity (which makes this `quantize_rtn`). Nothing is
    random, so ``seed`` has no influence. Raises `RecipeError` for other ``bits`` and for weights beyond the range of
    float16 scales, `CalibrationError` for a second moment that is not finite.
    """
    spec = scalar_spec(bits, settings.group_size, settings.scale_bits)
    columns = weight.t().float()
    if second_moment is None:
        eye = SecondMoment(torch.eye(len(columns), device=columns.device))
        return _encoded(columns, spec, prepare_feedback(eye))
    distortion = None if settings.zero_forcing else _grid_distortion(columns, spec)
    inputs = _Inputs(second_moment.as_square(), distortion, columns.device)
    if settings.damping == "auto":
        return _encoded(columns, spec, _chosen_feedback(columns, inputs, spec))
    return _encoded(columns, spec, inputs.feedback(settings.damping))


@dataclass(frozen=True)
class _Inputs:
    """The moment of the inputs, and the ``distortion [columns]`` that grids have, ``None`` for grids taken as exact.

    A moment on an accelerator is factored there; what follows is computed at ``home``.
    """

    moment: SecondMoment
    distortion: Tensor | None
    home: torch.device

    def feedback(self, damping: float) -> Feedback:
        return prepare_feedback(self.moment, damping, distortion=self.distortion).to(self.home)


def _grid_distortion(columns: Tensor, spec: ScalarSpec) -> Tensor:
    """The share of each column's energy that its grid leaves as error: float64 ``[columns]`` of ``columns [columns,
    out]``."""
    grid = search_grid(columns, spec, columns.new_ones(len(columns)))
    left, energy = (columns - grid.rounded(columns)).square().sum(1), columns.square().sum(1)
    return torch.where(energy > 0, left / energy, 0).double().clamp_max(1)


def _chosen_feedback(columns: Tensor, inputs: _Inputs, spec: ScalarSpec) -> Feedback:
    """With the one of `DAMPINGS` that leaves `TRIED` of the outputs of ``columns [columns, out]`` the least error.

    The error is that of the output under the second moment, all of it: on `shapes-dit` this chooses what error on
    held-out prompts would choose to within a third of a per cent.
    """
    tried = columns[:, :: max(1, columns.shape[1] // TRIED)].contiguous()

    def error(feedback: Feedback) -> float:
        found, tensors = _encoded(tried, spec, feedback)
        return inputs.moment.power((found.decode_transposed(tried.shape[1], len(tried), tensors) - tried).t())

    return min((inputs.feedback(damping) for damping in DAMPINGS), key=error)


def _encoded(columns: Tensor, spec: ScalarSpec, feedback: Feedback) -> tuple[ScalarSpec, dict[str, Tensor]]:
    """``columns [columns, out]`` on the grids of the original weights, in one sweep."""
    grid = search_grid(columns, spec, feedback.sensitivity)
    codes = torch.empty(columns.shape, dtype=torch.int32, device=columns.device)

    def encode(column: int, target: Tensor) -> Tensor:
        codes[column] = grid.encode(column, target)
        return grid.decode(column, codes[column])

    feedback.sweep(columns, encode)
    return grid.spec, grid.tensors(codes)


GPTQ = Quantizer(quantize_gptq, GPTQSettings)
