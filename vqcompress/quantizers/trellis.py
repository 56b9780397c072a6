"""The trellis quantizer: one circular trellis code per input column, error feedback between columns.

Tseng et al. 2024 (QTIP, arXiv 2406.11235) code short runs of a row at one rate after rotating both sides of the weight. Here
a whole column is one tail-biting sequence, so that feedback between inputs (Frantar et al. 2023, arXiv 2210.17323) is exact
and no start state is stored; columns get rates by reverse water-filling; heavy tails are met by the value table,
or by a rotation of the outputs alone. Objective: ``tr((W - Ŵ) H (W - Ŵ)ᵀ)`` for ``W [rows, columns]``, ``H [columns, columns]``.

Where it is known how errors of the outputs add up in what comes after the layer, ``G [rows, rows]``, the objective is
``tr(G (W - Ŵ) H (W - Ŵ)ᵀ)`` (Tseng, Sun, De Sa 2025, YAQA, arXiv 2505.22988, section 2), and errors are fed back within a column too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vqcompress.bitpack import pack, packed_bytes
from vqcompress.errors import RecipeError
from vqcompress.formats.column_scales import (
    COLUMN_SCALE_BITS,
    COLUMN_SCALES_ON_DISK,
    column_scale_factors,
    column_scales_shape,
    nearest_column_scale,
    pack_column_scales,
)
from vqcompress.formats.rates import join_blocks, pack_rates
from vqcompress.formats.rotation import rotate
from vqcompress.formats.trellis import TrellisSpec
from vqcompress.formats.trellis_table import STATE_BITS, gaussian_error, max_rate, value_table
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.column_rates import RatePlan, plan_rates
from vqcompress.quantizers.coordinate_descent import damped, descend, squared_error
from vqcompress.quantizers.error_feedback import Feedback, prepare_feedback
from vqcompress.quantizers.quantizer import Quantizer
from vqcompress.quantizers.scales import WORTH_GAINS, choose_gains, coded_energy, column_gains, divide_by_scale
from vqcompress.quantizers.source_model import SourceModel, choose_source, row_scale
from vqcompress.search.gpu_viterbi import GpuViterbi, search_device
from vqcompress.search.viterbi import CpuViterbi
from vqcompress.search.viterbi_outputs import OutputViterbi, plan_outputs

PLAN_ROUNDS = 3  # rates follow from what errors cost, and errors from rates
PACK_WEIGHTS = 1 << 22  # packed at once: bounds the memory that bits spread out over bytes take


@dataclass(frozen=True)
class TrellisSettings:
    """How hard to search, and what to leave to the data.

    ``state_bits`` (8, 10, 12, 14, 16): each two more take four times as long. ``polish``: passes of coordinate descent after
    the feedback sweep. ``tail``: Tukey's h of the value table. ``row_scales``: a scale per row, or one for all; ``"auto"``
    decides both by a trial on a few columns. ``rotation``: of the outputs (`vqcompress.formats.rotation`), in place of
    both where that codes heavy-tailed weights better. ``gains``: a factor for each column; ``"auto"`` where columns differ enough in
    size to pay for them, or outgrow the code as errors are fed back. ``damping``: share of its mean diagonal added to the second moment;
    ``output_damping``: to the output moment. ``search``: where columns are searched, ``"cpu"`` or ``"gpu"`` (Triton, states of at
    most 14 bits; with an output moment on the CPU all the same).
    """

    state_bits: int = 12
    polish: int = 1
    tail: float | Literal["auto"] = "auto"
    row_scales: bool | Literal["auto"] = "auto"
    rotation: bool | Literal["auto"] = "auto"
    gains: bool | Literal["auto"] = "auto"
    damping: float = 1e-3
    output_damping: float = 0.1
    search: Literal["cpu", "gpu"] = "cpu"

    def __post_init__(self) -> None:
        if self.search not in ("cpu", "gpu"):
            raise RecipeError(f"search={self.search!r} is neither 'cpu' nor 'gpu'")


def quantize_trellis(
    weight: Tensor,
    second_moment: SecondMoment | None,
    settings: TrellisSettings,
    bits: float,
    seed: int,
    output_moment: Tensor | None = None,
) -> tuple[TrellisSpec, dict[str, Tensor]]:
    """Encode ``weight [rows, columns]`` (float32, finite) so that all that is stored takes at most ``bits`` bits a weight.

    ``second_moment [columns, columns]`` and ``output_moment [rows, rows]``, or ``None`` for the identity. ``seed`` picks the trial's columns and the row where
    the circular streams are cut. A second moment on an accelerator is factored there; the rest runs on the CPU, but for the search where
    ``settings`` ask for a GPU, and the stored tensors lie where ``weight`` was. Raises `RecipeError` when no trellis fits the budget: the
    layer is too small.
    """
    on_gpu = search_device(weight.device) if settings.search == "gpu" and output_moment is None else None
    feedback = None if second_moment is None else prepare_feedback(second_moment, settings.damping).to("cpu")
    home, weight = weight.device, weight.cpu()
    second_moment = None if second_moment is None else second_moment.to("cpu")
    outputs = None if output_moment is None else damped(output_moment.cpu(), settings.output_damping)

    def swept(gains: Tensor | None) -> _TrellisColumns:
        return _swept(weight, feedback, outputs, settings, bits, seed, gains, on_gpu)

    columns = swept(choose_gains(weight, settings.gains))
    if settings.gains == "auto" and columns.outgrown():
        columns = min(columns, swept(column_gains(weight)), key=_cost)
    if second_moment is not None:
        for _ in range(settings.polish):
            columns.refit_scale(second_moment)
            columns.polish(second_moment)
    columns.refit_scale(second_moment)
    spec, tensors = columns.packed()
    return spec, {name: tensor.to(home) for name, tensor in tensors.items()}


def check_search(settings: TrellisSettings) -> None:
    """Raises `RecipeError` where the search that ``settings`` ask for cannot run on this machine."""
    if settings.search == "gpu":
        search_device(torch.device("cpu"))


def _cost(columns: _TrellisColumns) -> float:
    return float(columns.costs.sum())


def _swept(
    weight: Tensor,
    feedback: Feedback | None,
    outputs: Tensor | None,
    settings: TrellisSettings,
    bits: float,
    seed: int,
    gains: Tensor | None,
    on_gpu: torch.device | None,
) -> _TrellisColumns:
    """All columns encoded once, with ``gains`` uint8 ``[columns]`` for the sizes that they have before anything feeds back."""
    generator = torch.Generator().manual_seed(seed)
    state_bits = usable_state_bits(len(weight), settings.state_bits, bits)
    sensitivity = torch.ones(weight.shape[1]) if feedback is None else feedback.sensitivity
    gained = gains is not None
    sizes = torch.ones(weight.shape[1]) if gains is None else column_scale_factors(gains)
    inherited = feedback.propagated_error() if gained and feedback is not None else None
    costs = _Costs(sensitivity * sizes.to(sensitivity).square(), inherited, gained)
    source = choose_source(
        weight / sizes,
        settings.tail,
        settings.row_scales,
        settings.rotation,
        state_bits,
        round(bits),
        _shares(_plan(weight, costs, state_bits, SourceModel(0.0, False), bits).rates),
        generator,
    )
    weight = rotate(weight.t(), source.rotation).t()
    if outputs is not None:
        outputs = rotate(rotate(outputs, source.rotation).t(), source.rotation)
    columns = _TrellisColumns(
        weight,
        state_bits,
        source,
        _plan(weight, costs, state_bits, source, bits),
        sizes if gained else None,
        int(torch.randint(len(weight), (), generator=generator)),
        outputs,
        on_gpu,
    )
    columns.sweep(feedback)
    return columns


def usable_state_bits(rows: int, wanted: int, bits: float) -> int:
    """``wanted``, or what the layer asks for: more where the rate leaves no room for a column to exceed it (a state
    must hold two symbols), no more than a circular column of one bit a weight can hold."""
    if wanted not in STATE_BITS:
        raise RecipeError(f"state_bits={wanted} is not one of {STATE_BITS}; 12 is the usual choice")
    while max_rate(wanted) < bits + 0.25 and wanted < STATE_BITS[-1]:
        wanted += 2
    return max([size for size in STATE_BITS if size <= min(rows, wanted)], default=STATE_BITS[0])


def _shares(rates: Tensor) -> dict[int, float]:
    """Share of columns that have each rate above 0."""
    found, counts = torch.unique(rates[rates > 0], return_counts=True)
    return {rate: count / len(rates) for rate, count in zip(found.tolist(), counts.tolist(), strict=True)}


@dataclass(frozen=True)
class _Costs:
    """What error costs in each column, ``own [columns]`` for its weights and more for what it has ``inherited`` when its turn comes."""

    own: Tensor
    inherited: Tensor | None
    gained: bool

    def at(self, level: float) -> Tensor:
        """With the cost that coded columns are left with."""
        return self.own if self.inherited is None else self.own + level * self.inherited


def _plan(weight: Tensor, costs: _Costs, state_bits: int, source: SourceModel, bits: float) -> RatePlan:
    rows, columns = weight.shape
    lowest = -(-state_bits // rows)
    usable = range(0 if lowest == 1 else lowest, max_rate(state_bits) + 1)
    distortion = {rate: gaussian_error(state_bits, rate) for rate in usable}
    budget = int(bits * rows * columns / 8) - 2 * (rows if source.row_scales else 1)
    budget -= column_scales_shape(columns)[1] if costs.gained else 0
    plan, level = None, 0.0
    for _ in range(1 if costs.inherited is None else PLAN_ROUNDS):
        cost = costs.at(level)
        plan = plan_rates(cost, distortion, lambda rate: packed_bytes(rows, rate), budget) if distortion else None
        if plan is None or not plan.rates.any():
            raise RecipeError(
                f"a weight of {rows} x {columns} is too small for a trellis code within {bits} bits a weight; keep it "
                "dense, or use method='rtn'"
            )
        level = float((cost * torch.tensor([distortion[rate] for rate in plan.rates.tolist()]).to(cost)).mean())
    assert plan is not None
    return plan


class _TrellisColumns:
    """A weight being encoded: its columns' symbols and unscaled values, under one scale and, with ``sizes``, a gain a column.

    ``outputs [rows, rows]`` is what errors in a column cost together, ``None`` for the sum of their squares.
    """

    def __init__(
        self,
        weight: Tensor,
        state_bits: int,
        source: SourceModel,
        plan: RatePlan,
        sizes: Tensor | None,
        phase: int,
        outputs: Tensor | None = None,
        on_gpu: torch.device | None = None,
    ) -> None:
        self.target = weight.t().contiguous()
        self.state_bits, self.source, self.plan = state_bits, source, plan
        self.rates = plan.rates.tolist()
        leveled = weight if sizes is None else weight / sizes
        self.scale = row_scale(leveled, source.row_scales)
        self.size = divide_by_scale(leveled, self.scale).abs().mean()
        self.distortion = {rate: gaussian_error(state_bits, rate) for rate in set(self.rates)}
        self.costs = torch.zeros(
            len(self.target), dtype=torch.float64
        )  # of errors, and of those that a code of the target's size would leave
        self.fitted = torch.zeros(len(self.target), dtype=torch.float64)
        self.symbols = torch.zeros(self.target.shape, dtype=torch.uint8)
        self.values = torch.zeros(self.target.shape)
        self.gains = None if sizes is None else torch.zeros(len(self.target), dtype=torch.uint8)
        tables = {rate: value_table(state_bits, rate, source.tail) for rate in set(self.rates) if rate}
        self.outputs = outputs
        self.search: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
        if outputs is not None:
            self.search = OutputViterbi(len(weight), state_bits, tables, phase, plan_outputs(outputs, phase))
        elif on_gpu is not None:
            self.search = GpuViterbi(len(weight), state_bits, tables, phase, on_gpu)
        else:
            self.search = CpuViterbi(len(weight), state_bits, tables, phase)

    def sweep(self, feedback: Feedback | None) -> None:
        """Encode every column once, and note what its error ``costs``."""
        sensitivity = [1.0] * len(self.target) if feedback is None else feedback.sensitivity.tolist()

        def encode(column: int, target: Tensor) -> Tensor:
            decoded = self._encode(column, target)
            self.costs[column] = sensitivity[column] * squared_error(target - decoded, self.outputs)
            self.fitted[column] = (
                sensitivity[column] * squared_error(target, self.outputs) * self.distortion[self.rates[column]]
            )
            return decoded

        if feedback is None:
            for column, target in enumerate(self.target):
                encode(column, target)
        else:
            feedback.sweep(self.target, encode)

    def outgrown(self) -> bool:
        """Whether targets have outgrown the code by more than gains cost: feedback on correlated inputs can make them many times
        larger than the weights were, and what lies beyond the code's largest value is lost."""
        if self.gains is not None:
            return False
        coded = (self.costs > 0) & (self.fitted > 0)
        usual = (self.costs / self.fitted)[coded].median() if coded.any() else 1.0  # heavy tails cost everywhere
        price = COLUMN_SCALE_BITS / self.target.shape[1] + WORTH_GAINS
        return bool(self.costs.sum() > 4.0**price * usual * self.fitted.sum())

    def polish(self, second_moment: SecondMoment) -> None:
        """One pass of coordinate descent; columns that do not improve get their codes back."""
        kept = [part.clone() for part in self._parts()]
        decoded = self._unscaled() * self.scale
        _, accepted = descend(self.target, decoded, second_moment, self._encode, self.outputs)
        for part, old in zip(self._parts(), kept, strict=True):
            part[~accepted] = old[~accepted]

    def refit_scale(self, second_moment: SecondMoment | None) -> None:
        """The best scales for the codes at hand: least-squares gains in the objective, rounded as stored."""
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
        codes = join_blocks({rate: self._packed_block(rate) for rate in set(self.rates)})
        scale = self.scale if self.source.row_scales else self.scale[:1]
        tensors = {"weight": codes, "scale": scale.half()}
        if self.plan.rate_bits:
            tensors["rates"] = pack_rates(self.plan.rates, self.plan.min_rate, self.plan.rate_bits)
        if self.gains is not None:
            tensors[COLUMN_SCALES_ON_DISK] = pack_column_scales(self.gains)
        spec = TrellisSpec(
            state_bits=self.state_bits,
            min_rate=self.plan.min_rate,
            rate_bits=self.plan.rate_bits,
            tail=self.source.tail,
            row_scales=self.source.row_scales,
            code_bytes=codes.numel(),
            rotation=self.source.rotation,
            column_scales=self.gains is not None,
        )
        return spec, tensors

    def _encode(self, column: int, target: Tensor) -> Tensor:
        rate, scale = self.rates[column], self.scale
        if rate and self.gains is not None:
            # What feedback has added to a column can be larger than the column was.
            size = divide_by_scale(target[:, None], scale).abs().mean()
            self.gains[column] = gain = nearest_column_scale(size / self.size)
            scale = scale * column_scale_factors(gain)
        if rate:
            self.symbols[column], self.values[column] = self.search(target, scale, rate)
        return self.values[column] * scale

    def _unscaled(self) -> Tensor:
        """Values with their columns' gains, ``[columns, rows]``."""
        return self.values if self.gains is None else self.values * column_scale_factors(self.gains)[:, None]

    def _parts(self) -> list[Tensor]:
        """All that a column's code consists of."""
        return [self.symbols, self.values, *([] if self.gains is None else [self.gains])]

    def _packed_block(self, rate: int) -> Tensor:
        symbols = self.symbols[self.plan.rates == rate]
        if rate == 0:
            return torch.zeros(len(symbols), 0, dtype=torch.int8)
        at_once = max(1, PACK_WEIGHTS // symbols.shape[1])
        return torch.cat([pack(part, rate) for part in symbols.split(at_once)])


def _coupled_scales(target: Tensor, values: Tensor, filtered: Tensor, outputs: Tensor) -> Tensor:
    """Row scales ``s [rows]`` that minimise ``tr(G (T - SV) H (T - SV)ᵀ)``; all but ``outputs`` are ``[columns, rows]``.

    The normal equations are ``(G ∘ VHVᵀ) s = diag(G THVᵀ)``: one row's scale makes up for what another's got wrong.
    """
    normal = (outputs * (filtered.t() @ values)).double()
    along = (outputs * (target.t() @ filtered)).double().sum(0)
    normal.diagonal().add_(1e-9 * normal.diagonal().mean() + 1e-30)  # rows of zeros have no scale of their own
    return torch.linalg.solve(normal, along).float()


TRELLIS = Quantizer(quantize_trellis, TrellisSettings, energy=coded_energy, check=check_search)
