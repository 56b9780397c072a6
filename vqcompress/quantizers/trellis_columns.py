"""A weight while it is being encoded by a trellis: its columns' symbols and values, and the steps that improve them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from vqcompress.formats.column_scales import (
    COLUMN_SCALE_BITS,
    COLUMN_SCALES_ON_DISK,
    column_scale_factors,
    nearest_column_scale,
    pack_column_scales,
)
from vqcompress.formats.rates import join_blocks, pack_rates
from vqcompress.formats.trellis import TrellisSpec, pack_symbols, value_tables
from vqcompress.formats.trellis_table import gaussian_error
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.column_rates import RatePlan
from vqcompress.quantizers.coordinate_descent import descend, squared_error
from vqcompress.quantizers.error_feedback import Feedback
from vqcompress.quantizers.scales import COLUMN_SCALES_MUST_SAVE, divide_by_scale, rms_scale
from vqcompress.quantizers.source_check import keeps_promise
from vqcompress.quantizers.source_model import SourceModel
from vqcompress.search.coupled_viterbi import CoupledViterbi, factor_metric
from vqcompress.search.decided_viterbi import DecidedViterbi
from vqcompress.search.gpu_viterbi import GpuViterbi
from vqcompress.search.viterbi import CpuViterbi

OutputSearch: TypeAlias = Literal["decided", "survivors"]
OUTPUT_SEARCHES = {"decided": DecidedViterbi, "survivors": CoupledViterbi}
FEW_OUTPUTS = 128  # until here a search with each path's own errors is cheap, and deciding early costs the most
MOST_EMPHASIS = 64.0  # weaker outputs are next to nothing: rounding, or dead
PACK_WEIGHTS = 1 << 22  # packed at once: bounds the memory that bits spread out over bytes take


@dataclass(frozen=True)
class TrellisCode:
    """What is fixed before the first column: state size, source model, rates, and the output ``phase`` where streams
    are cut."""

    state_bits: int
    source: SourceModel
    plan: RatePlan
    phase: int
    output_search: OutputSearch


class TrellisColumns:
    """``weight [out, columns]`` under ``code``, one scale or one per output and, with ``sizes [columns]``, a scale per
    column.

    ``output_moment [out, out]`` is what errors of a column cost together, ``None`` for the sum of their squares.
    ``on_gpu`` is where columns are searched, ``None`` for the CPU. ``distortions [columns]`` are those of the columns'
    codes on a source of unit variance. After `sweep`, ``costs [columns]`` is what errors cost, and ``costs_in_range``
    what a code would have left that has the size of each target; ``output_costs [out]`` and ``output_costs_in_range``
    are the same by outputs (of the rotated weight).
    """

    def __init__(
        self,
        weight: Tensor,
        code: TrellisCode,
        sizes: Tensor | None,
        output_moment: Tensor | None = None,
        on_gpu: torch.device | None = None,
    ) -> None:
        self.target = weight.t().contiguous()
        self.state_bits, self.source, self.plan = code.state_bits, code.source, code.plan
        self.output_search = code.output_search
        self.rates = self.plan.bits.tolist()
        leveled = weight if sizes is None else weight / sizes
        self.scale = rms_scale(leveled, self.source.row_scales)
        self.emphasis = emphasis(leveled) if output_moment is None else None
        self.size = divide_by_scale(leveled, self.scale).abs().mean()
        self.distortions = torch.tensor([gaussian_error(self.state_bits, rate) for rate in self.rates])
        self.costs = torch.zeros(len(self.target), dtype=torch.float64)
        self.costs_in_range = torch.zeros(len(self.target), dtype=torch.float64)
        self.output_costs, self.output_costs_in_range = torch.zeros(2, len(weight), dtype=torch.float64)
        self.symbols = torch.zeros(self.target.shape, dtype=torch.uint8)
        self.values = torch.zeros(self.target.shape)
        self.column_scales = None if sizes is None else torch.zeros(len(self.target), dtype=torch.uint8)
        self.outputs = output_moment
        self.search = self._search(len(weight), code.phase, on_gpu)

    def sweep(self, feedback: Feedback | None) -> None:
        """Encode every column once, and note what its error costs."""
        sensitivity = [1.0] * len(self.target) if feedback is None else feedback.sensitivity.tolist()

        def encode(column: int, target: Tensor) -> Tensor:
            decoded = self._encode(column, target)
            self.costs[column] = sensitivity[column] * squared_error(target - decoded, self.outputs)
            in_range = sensitivity[column] * self.distortions[column]
            self.costs_in_range[column] = in_range * squared_error(target, self.outputs)
            self.output_costs += sensitivity[column] * (target - decoded).square()
            self.output_costs_in_range += in_range * target.square()
            return decoded

        if feedback is None:
            for column, target in enumerate(self.target):
                encode(column, target)
        else:
            feedback.sweep(self.target, encode)

    def error(self, second_moment: SecondMoment | None) -> float:
        """``tr(G E H Eᵀ)`` of the weight as it would be decoded, with the identity in place of moments that are
        ``None``."""
        error = self.target - self._unscaled() * self.scale
        filtered = error if second_moment is None else second_moment @ error
        return float((filtered * (error if self.outputs is None else error @ self.outputs)).sum(dtype=torch.float64))

    def out_of_range(self) -> bool:
        """Whether targets exceed the code's range so far that column scales would pay.

        Feedback on correlated inputs can make targets many times larger than the weights were, and what lies beyond the
        code's largest value is lost.
        """
        if self.column_scales is not None:
            return False
        coded = (self.costs > 0) & (self.costs_in_range > 0)
        usual = (
            (self.costs / self.costs_in_range)[coded].median() if coded.any() else 1.0
        )  # heavy tails cost everywhere
        bits = COLUMN_SCALE_BITS / self.target.shape[1] + COLUMN_SCALES_MUST_SAVE
        return bool(self.costs.sum() > 4.0**bits * usual * self.costs_in_range.sum())

    def keeps_promise(self) -> bool:
        """Whether all outputs' errors are about those of a code that their targets fit (`source_check`)."""
        return keeps_promise(self.output_costs, self.output_costs_in_range, len(self.target))

    def descend(self, second_moment: SecondMoment) -> None:
        """One pass of coordinate descent; columns that do not improve get their codes back."""
        kept = [part.clone() for part in self._parts()]
        decoded = self._unscaled() * self.scale
        _, accepted = descend(self.target, decoded, second_moment, self._encode, self.outputs)
        for part, old in zip(self._parts(), kept, strict=True):
            part[~accepted] = old[~accepted]

    def refit_scale(self, second_moment: SecondMoment | None) -> None:
        """The best scales for the codes at hand: least squares in the objective, rounded as stored."""
        values = self._unscaled()
        filtered = values if second_moment is None else second_moment @ values
        if self.outputs is not None and self.source.row_scales:
            self.scale = _coupled_scales(self.target, values, filtered, self.outputs).half().float()
            return
        if self.outputs is not None:
            filtered = filtered @ self.outputs
        along, power = (self.target * filtered).sum(0), (values * filtered).sum(0)
        if not self.source.row_scales:
            along, power = along.sum(), power.sum()
        refitted = torch.where(power > 0, along / power, self.scale)
        self.scale = refitted.half().float().expand(self.target.shape[1]).contiguous()

    def packed(self) -> tuple[TrellisSpec, dict[str, Tensor]]:
        """Spec and stored tensors."""
        codes = join_blocks({rate: self._packed_block(rate) for rate in set(self.plan.rates.tolist())})
        scale = self.scale if self.source.row_scales else self.scale[:1]
        tensors = {"weight": codes, "scale": scale.half()}
        if self.plan.rate_bits:
            tensors["rates"] = pack_rates(self.plan.rates, self.plan.min_rate, self.plan.rate_bits)
        if self.column_scales is not None:
            tensors[COLUMN_SCALES_ON_DISK] = pack_column_scales(self.column_scales)
        spec = TrellisSpec(
            state_bits=self.state_bits,
            min_rate=self.plan.min_rate,
            rate_bits=self.plan.rate_bits,
            tail=self.source.tail,
            row_scales=self.source.row_scales,
            code_bytes=codes.numel(),
            rotation=self.source.rotation,
            column_scales=self.column_scales is not None,
            half_rates=self.plan.unit < 1,
        )
        return spec, tensors

    def _search(
        self, outputs: int, phase: int, on_gpu: torch.device | None
    ) -> Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]:
        """``(target [out], scale [out], rate)`` -> symbols and values."""
        tables = value_tables(self.state_bits, self.rates, self.source.tail)
        if self.outputs is not None:
            search = OUTPUT_SEARCHES["survivors" if outputs < FEW_OUTPUTS else self.output_search]
            return search(outputs, self.state_bits, tables, phase, factor_metric(self.outputs, phase))
        if on_gpu is not None:
            return GpuViterbi(outputs, self.state_bits, tables, phase, on_gpu)
        return CpuViterbi(outputs, self.state_bits, tables, phase)

    def _encode(self, column: int, target: Tensor) -> Tensor:
        rate, scale = self.rates[column], self.scale
        if rate and self.column_scales is not None:
            # What feedback has added to a column can be larger than the column was.
            size = divide_by_scale(target[:, None], scale).abs().mean()
            self.column_scales[column] = factor = nearest_column_scale(size / self.size)
            scale = scale * column_scale_factors(factor)
        if rate:
            more = self.emphasis
            sought = (target, scale) if more is None else (target * more, scale * more)
            self.symbols[column], self.values[column] = self.search(*sought, rate)
        return self.values[column] * scale

    def _unscaled(self) -> Tensor:
        """Values under their columns' scales but not their outputs', ``[columns, out]``."""
        if self.column_scales is None:
            return self.values
        return self.values * column_scale_factors(self.column_scales)[:, None]

    def _parts(self) -> list[Tensor]:
        """All that a column's code consists of."""
        return [self.symbols, self.values, *([] if self.column_scales is None else [self.column_scales])]

    def _packed_block(self, rate: int) -> Tensor:
        """Codes of the columns of a rate as it is stored."""
        symbols = self.symbols[self.plan.rates == rate]
        if rate == 0:
            return torch.zeros(len(symbols), 0, dtype=torch.int8)
        at_once = max(1, PACK_WEIGHTS // symbols.shape[1])
        return torch.cat([pack_symbols(part, rate * self.plan.unit) for part in symbols.split(at_once)])


def emphasis(weight: Tensor) -> Tensor:
    """Factors ``[out]`` by which errors of weak outputs of ``weight [out, columns]`` count more in the search.

    The search trades errors of neighbouring outputs against each other. By their squares it would leave the same error
    in all, however fine their own scales are: an output of a tenth of the mean power would lose half of its weights
    where others lose a twentieth. On the inputs of calibration this costs least. But what it does to such an output
    lies where these inputs have no power, and others may. As with a scalar code, which has a grid for each output,
    errors count here by the RMS of the output's own weights.
    """
    rms = weight.double().square().mean(1).sqrt()
    return torch.where(rms > 0, rms.square().mean().sqrt() / rms, 1.0).clamp_(1 / MOST_EMPHASIS, MOST_EMPHASIS).float()


def _coupled_scales(target: Tensor, values: Tensor, filtered: Tensor, outputs: Tensor) -> Tensor:
    """Output scales ``s [out]`` that minimise ``tr(G (T - SV) H (T - SV)ᵀ)``; all but ``outputs`` are ``[columns,
    out]``.

    The normal equations are ``(G ∘ VHVᵀ) s = diag(G THVᵀ)``: one output's scale makes up for what another's got wrong.
    """
    normal = (outputs * (filtered.t() @ values)).double()
    along = (outputs * (target.t() @ filtered)).double().sum(0)
    normal.diagonal().add_(1e-9 * normal.diagonal().mean() + 1e-30)  # outputs of zeros have no scale of their own
    return torch.linalg.solve(normal, along).float()
