"""The trellis quantizer: one circular trellis code per input column, error feedback between columns.

Tseng et al. 2024 (QTIP, arXiv 2406.11235) code short runs of an output at one rate after rotating both sides of the
weight. Here a whole column is one tail-biting sequence, so that feedback between inputs (Frantar et al. 2023, arXiv
2210.17323) is exact and no start state is stored; columns get rates by reverse water-filling; heavy tails are met by
the value table, or by a rotation of the outputs alone. Objective: ``tr((W - Ŵ) H (W - Ŵ)ᵀ)`` for ``W [out, columns]``,
``H [columns, columns]``.

Where it is known how errors of the outputs add up in what comes after the layer, ``G [out, out]``, the objective is
``tr(G (W - Ŵ) H (W - Ŵ)ᵀ)`` (Tseng, Sun, De Sa 2025, YAQA, arXiv 2505.22988, section 2), and errors are fed back within
a column too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vqcompress.bitpack import packed_bytes
from vqcompress.errors import UnfitWeightError
from vqcompress.formats.column_scales import column_scale_factors, column_scales_shape
from vqcompress.formats.rotation import rotate
from vqcompress.formats.trellis import MAX_TAIL, TrellisSpec
from vqcompress.formats.trellis_table import STATE_BITS, gaussian_error, max_rate
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.column_order import price_of_a_bit
from vqcompress.quantizers.column_rates import MAX_RATE_BITS, RatePlan, plan_rates
from vqcompress.quantizers.coordinate_descent import damped
from vqcompress.quantizers.error_feedback import FeedbackPlanner
from vqcompress.quantizers.outliers import NO_OUTLIERS, outliers_worth_storing
from vqcompress.quantizers.quantizer import Quantizer
from vqcompress.quantizers.scales import Auto, choose_column_scales, coded_energy, column_scale_codes
from vqcompress.quantizers.setting_values import SHARE, check_setting, check_types
from vqcompress.quantizers.source_check import other_models
from vqcompress.quantizers.source_model import SampleCode, SourceModel, SourceOptions, select_source_model
from vqcompress.quantizers.trellis_columns import OutputSearch, TrellisCode, TrellisColumns
from vqcompress.search.gpu_viterbi import search_device

HIGH_BITS = 3.4


@dataclass(frozen=True)
class TrellisSettings:
    """How hard to search, and what to leave to the data.

    ``state_bits`` (8, 10, 12, 14, 16): each two more take two to four times as long; ``"auto"`` takes 12, and 14 from
    `HIGH_BITS` bits a weight on, where 12 hold too few symbols to come near the limit. ``coordinate_descent``: passes
    of it after the feedback sweep. ``tail``: Tukey's h of the value table. ``row_scales``: a scale for each output, or
    one for all; ``"auto"`` decides both by encoding a few columns. ``rotation``: of the outputs
    (`vqcompress.formats.rotation`), in place of both where that codes heavy-tailed weights better. ``column_scales``: a
    factor for each column; ``"auto"`` where columns differ enough in size to pay for them, or leave the code's range as
    errors are fed back. ``outliers``: whether few weights beyond the code's range are stored beside it.
    ``damping``: share of its mean diagonal added to the second moment, ``"auto"`` as `error_feedback.usual_damping`;
    ``output_damping``: to the output moment. ``output_search``, where there is one: errors are fed back between outputs
    along the cheapest path (``"decided"``), or along each path by itself (``"survivors"``: less error, in several times
    the time).
    ``search``: where columns are searched, ``"cpu"`` or ``"gpu"`` (Triton, states of at most 14 bits; with an output
    moment on the CPU all the same). ``half_rates``: whether columns may have half-integer rates, where these leave less
    error; versions before them cannot read the result.
    """

    state_bits: int | Auto = "auto"
    coordinate_descent: int = 0
    tail: float | Auto = "auto"
    row_scales: bool | Auto = "auto"
    rotation: bool | Auto = "auto"
    column_scales: bool | Auto = "auto"
    outliers: bool = True
    damping: float | Auto = "auto"
    output_damping: float = 0.1
    output_search: OutputSearch = "decided"
    search: Literal["cpu", "gpu"] = "cpu"
    half_rates: bool = True

    def __post_init__(self) -> None:
        check_types("trellis", self)
        states, passes, share = self.state_bits, self.coordinate_descent, self.damping
        known = ", ".join(map(str, STATE_BITS))
        check_setting("trellis", "state_bits", states, states == "auto" or states in STATE_BITS, f"{known}, or 'auto'")
        check_setting("trellis", "coordinate_descent", passes, 0 <= passes <= 1000, "0 to 1000")
        tail_fits = self.tail == "auto" or abs(self.tail) <= MAX_TAIL
        check_setting("trellis", "tail", self.tail, tail_fits, f"-{MAX_TAIL:g} to {MAX_TAIL:g}, or 'auto'")
        check_setting("trellis", "damping", share, share == "auto" or 0 < share <= 1, f"{SHARE}, or 'auto'")
        output_share = self.output_damping
        check_setting("trellis", "output_damping", output_share, 0 <= output_share <= 1, "a share in [0, 1]")


def quantize_trellis(
    weight: Tensor,
    second_moment: SecondMoment | None,
    settings: TrellisSettings,
    bits: float,
    seed: int,
    output_moment: Tensor | None = None,
) -> tuple[TrellisSpec, dict[str, Tensor]]:
    """Encode ``weight [out, columns]`` (float32, finite) so that all that is stored takes at most ``bits`` bits a
    weight.

    ``second_moment`` is H and ``output_moment [out, out]`` is G; ``None`` stands for the identity. ``seed`` picks the
    columns for model selection and the output where the circular streams are cut. A second moment on an accelerator is
    factored there. The rest runs on the CPU, but for the search where ``settings`` ask for a GPU; the stored tensors
    lie where ``weight`` was. Raises `UnfitWeightError` when no trellis fits the budget: the layer is too small.
    """
    on_gpu = search_device(weight.device) if settings.search == "gpu" and output_moment is None else None
    home, weight = weight.device, weight.cpu()
    inputs = None if second_moment is None else FeedbackPlanner.for_setting(second_moment, settings.damping, bits)
    second_moment = None if second_moment is None else second_moment.to("cpu")
    outputs = None if output_moment is None else damped(output_moment.cpu(), settings.output_damping)
    outliers = NO_OUTLIERS
    if settings.outliers:
        sensitivity = torch.ones(weight.shape[1]) if inputs is None else inputs.costs(torch.ones(weight.shape[1]), bits)
        outliers = outliers_worth_storing(weight, sensitivity, bits)
        weight, bits = outliers.removed_from(weight), bits - outliers.bits_per_weight(weight)
    task = _Task(weight, inputs, outputs, settings, bits, seed, on_gpu)
    column_scales = choose_column_scales(weight, settings.column_scales)
    columns = task.swept(column_scales)
    if settings.column_scales == "auto" and columns.out_of_range():
        found = column_scale_codes(weight)
        scaled = task.swept(found)
        if scaled.error(second_moment) < columns.error(second_moment):
            columns, column_scales = scaled, found
    columns = task.checked(columns, column_scales, second_moment)
    if second_moment is not None:
        for _ in range(settings.coordinate_descent):
            columns.refit_scale(second_moment)
            columns.descend(second_moment)
    columns.refit_scale(second_moment)
    spec, tensors = columns.packed()
    spec, tensors = replace(spec, outliers=len(outliers)), tensors | outliers.tensors()
    return spec, {name: tensor.to(home) for name, tensor in tensors.items()}


def check_search(settings: TrellisSettings) -> None:
    """Raises `RecipeError` where the search that ``settings`` ask for cannot run on this machine."""
    if settings.search == "gpu":
        search_device(torch.device("cpu"))


@dataclass(frozen=True)
class _Task:
    """What is to be encoded: ``weight [out, columns]`` under the moments of ``inputs`` and ``output_moment [out, out]``
    (None: identities)."""

    weight: Tensor
    inputs: FeedbackPlanner | None
    output_moment: Tensor | None
    settings: TrellisSettings
    bits: float
    seed: int
    on_gpu: torch.device | None

    def checked(
        self, columns: TrellisColumns, column_scales: Tensor | None, second_moment: SecondMoment | None
    ) -> TrellisColumns:
        """``columns``, or those of another source model where their errors are not what their own promised.

        Of several that were tried the best one that keeps its promise, or the best. Errors that are weighted together
        by an output moment are not compared.
        """
        tried = [columns]
        for model in other_models(columns.source, self._options(), self.weight):
            if self.output_moment is not None or tried[-1].keeps_promise():
                break
            tried.append(self.swept(column_scales, model))
        if len(tried) == 1:
            return columns
        return min(tried, key=lambda swept: (not swept.keeps_promise(), swept.error(second_moment)))

    def swept(self, column_scales: Tensor | None, source: SourceModel | None = None) -> TrellisColumns:
        """All columns encoded once; ``column_scales`` are codes (uint8 ``[columns]``) of the sizes that columns start
        with, and ``source`` is chosen if it is ``None``."""
        generator = torch.Generator().manual_seed(self.seed)
        weight, outputs, scaled = self.weight, self.output_moment, column_scales is not None
        state_bits = usable_state_bits(len(weight), self._wanted_state_bits, self.bits)
        sizes = torch.ones(weight.shape[1]) if column_scales is None else column_scale_factors(column_scales)
        energy = sizes.double().square()
        costs = _Costs(energy if self.inputs is None else self.inputs.costs(sizes, self.bits, scaled=scaled), scaled)
        source = source or self._source(weight / sizes, state_bits, costs, generator)
        weight = rotate(weight.t(), source.rotation).t()
        if outputs is not None:
            outputs = rotate(rotate(outputs, source.rotation).t(), source.rotation)
        plan, inputs = _plan(weight, costs, state_bits, source, self._budget), self.inputs
        if inputs is not None:
            ordered = inputs.in_fitted_order(sizes, self.bits, *_prices(plan, costs.at_rate_0, state_bits))
            fitted = _Costs(ordered.costs(sizes, self.bits, scaled=scaled), scaled)
            other = _plan(weight, fitted, state_bits, source, self._budget)
            inputs, plan = (ordered, other) if other.error < plan.error else (inputs, plan)
        phase = int(torch.randint(len(weight), (), generator=generator))
        code = TrellisCode(state_bits, source, plan, phase, self.settings.output_search)
        columns = TrellisColumns(weight, code, sizes if scaled else None, outputs, self.on_gpu)
        columns.sweep(None if inputs is None else inputs.feedback(columns.distortions))
        return columns

    @property
    def _wanted_state_bits(self) -> int:
        if self.settings.state_bits != "auto":
            return self.settings.state_bits
        if self.output_moment is not None:
            return 12  # its search takes ten times as long already
        return usual_state_bits(self.bits)

    @property
    def _budget(self) -> _Budget:
        # The search on a GPU has whole rates alone.
        return _Budget(self.bits, self.settings.half_rates and self.on_gpu is None)

    def _source(self, weight: Tensor, state_bits: int, costs: _Costs, generator: torch.Generator) -> SourceModel:
        plan = _plan(self.weight, costs, state_bits, SourceModel(0.0, False), self._budget)
        code = SampleCode(state_bits, plan.bits, costs.at_rate_0)
        return select_source_model(weight, self._options(), code, generator)

    def _options(self) -> SourceOptions:
        return SourceOptions(self.settings.tail, self.settings.row_scales, self.settings.rotation)


def usual_state_bits(bits: float) -> int:
    """What ``state_bits="auto"`` takes for ``bits`` a weight."""
    return 14 if bits >= HIGH_BITS else 12


def usable_state_bits(outputs: int, wanted: int, bits: float) -> int:
    """``wanted``, or what the layer asks for.

    More where the rate leaves no room for a column to exceed it (a state must hold two symbols); no more than a
    circular column of ``outputs`` weights can hold at one bit a weight.
    """
    while max_rate(wanted) < bits + 0.25 and wanted < STATE_BITS[-1]:
        wanted += 2
    return max([size for size in STATE_BITS if size <= min(outputs, wanted)], default=STATE_BITS[0])


@dataclass(frozen=True)
class _Costs:
    """What columns cost as sources, ``at_rate_0 [columns]``; whether they have scales, which the budget pays for."""

    at_rate_0: Tensor
    scaled: bool


@dataclass(frozen=True)
class _Budget:
    """``bits`` a weight for all that is stored, and whether columns may have half-integer rates."""

    bits: float
    half_rates: bool

    def nbytes(self, outputs: int, columns: int, source: SourceModel, costs: _Costs) -> int:
        """Bytes for codes and stored rates."""
        scales = 2 * (outputs if source.row_scales else 1) + (column_scales_shape(columns)[1] if costs.scaled else 0)
        return int(self.bits * outputs * columns / 8) - scales


def _plan(weight: Tensor, costs: _Costs, state_bits: int, source: SourceModel, budget: _Budget) -> RatePlan:
    outputs, columns = weight.shape
    nbytes, units = budget.nbytes(outputs, columns, source, costs), (1.0, 0.5) if budget.half_rates else (1.0,)
    plans = (_plan_in(unit, outputs, state_bits, costs.at_rate_0, nbytes) for unit in units)
    plan = min((plan for plan in plans if plan is not None), key=lambda plan: plan.error, default=None)
    if plan is None or not plan.rates.any():
        raise UnfitWeightError(
            f"a weight of {outputs} x {columns} is too small for a trellis code within {budget.bits} bits a weight; "
            "keep it dense, or use method='rtn'"
        )
    return plan


def _plan_in(unit: float, outputs: int, state_bits: int, cost: Tensor, nbytes: int) -> RatePlan | None:
    """The best plan with rates that are multiples of ``unit`` bits."""
    if outputs * unit < 1:
        return None
    lowest = -(-state_bits // int(outputs * unit))
    usable = range(0 if lowest == 1 else lowest, int(max_rate(state_bits) / unit) + 1)
    if not usable:
        return None
    distortion = {rate: gaussian_error(state_bits, rate * unit) for rate in usable}
    rate_bits = MAX_RATE_BITS + (unit < 1)
    plan = plan_rates(cost, distortion, lambda rate: packed_bytes(int(outputs * rate * unit), 1), nbytes, rate_bits)
    return None if plan is None else replace(plan, unit=unit)


def _prices(plan: RatePlan, costs: Tensor, state_bits: int) -> tuple[dict[float, float], float]:
    """Distortions of the rates that ``plan`` can store, by bits, and what a bit is worth under it."""
    last = min(plan.min_rate + (1 << plan.rate_bits) - 1, int(max_rate(state_bits) / plan.unit))
    rates = [rate * plan.unit for rate in range(plan.min_rate, last + 1)]
    distortions = {rate: gaussian_error(state_bits, rate) for rate in rates}
    return distortions, price_of_a_bit(costs, float(plan.bits.mean()), distortions)


TRELLIS = Quantizer(quantize_trellis, TrellisSettings, energy=coded_energy, check=check_search)
