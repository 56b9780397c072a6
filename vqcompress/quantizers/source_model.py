"""Model selection: which source model the weights follow, as seen by a trellis code that encodes a few of their
columns.

A model says how heavy the tails are, whether outputs need scales of their own, and whether the outputs are rotated
instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vqcompress.formats.rotation import rotate, rotation_block
from vqcompress.formats.trellis import value_tables
from vqcompress.formats.trellis_table import max_rate
from vqcompress.quantizers.scales import SCALE_BITS, Auto, rms_scale
from vqcompress.search.viterbi import CpuViterbi

TAILS = (0.0, 0.1, 0.2, 0.3)
TAIL_STEP = 0.05  # the second look, on either side of the best
SAMPLE_COLUMNS, SAMPLE_OUTPUTS = 24, 2048
REACH = 3.5  # standard deviations
LEAST_BLOCK = 16  # smaller blocks do not mix enough
WEAK = 1 / 64  # of the mean power
LITTLE = 0.25  # of a bit a weight
ROTATION_MUST_LEAVE = 0.97  # of the error, at most: undoing a rotation takes time at every use
LARGEST_STATE_BITS = 12  # larger states prefer the same tables, and take longer to say so


@dataclass(frozen=True)
class SourceModel:
    """``tail``: Tukey's h of the value table; ``row_scales``: a scale per output, or one for all; ``rotation``: block,
    or 0."""

    tail: float
    row_scales: bool
    rotation: int = 0


@dataclass(frozen=True)
class SourceOptions:
    """What a user fixes of a `SourceModel`; ``"auto"`` leaves it to `select_source_model`."""

    tail: float | Auto = "auto"
    row_scales: bool | Auto = "auto"
    rotation: bool | Auto = "auto"


@dataclass(frozen=True)
class SampleCode:
    """The code to compare models with: state size, ``rates [columns]`` in bits a weight, and ``costs [columns]`` of
    squared error."""

    state_bits: int
    rates: Tensor
    costs: Tensor


def select_source_model(
    weight: Tensor, options: SourceOptions, code: SampleCode, generator: torch.Generator
) -> SourceModel:
    """The model that encodes a few columns of ``weight [out, columns]`` at the least cost, within ``options``.

    Row scales count as what they cost: 16 bits an output would otherwise buy every weight of the output ``16 /
    columns`` bits, and a bit reduces the error by a factor of four. Where outputs would drown in the error of
    others, they get a scale each.
    """
    block = rotation_block(len(weight)) if len(weight) > 1 else 0
    sample = _Sample.of(weight, code, generator)
    drowned = drowns_outputs(weight)
    scalings = (drowned, True) if options.row_scales == "auto" else (options.row_scales,)
    if options.rotation is True:
        return replace(_best_tail(sample.rotated(block), scalings, options), rotation=block)
    best = _best_tail(sample, scalings, options)
    # A rotation makes outputs alike and tails nearly Gaussian, so that is the model to compare it with.
    if options.rotation == "auto" and not drowned and block >= LEAST_BLOCK and (best.tail > 0 or best.row_scales):
        rotated = sample.rotated(block)
        if rotated.cost(SourceModel(0.0, False)) < ROTATION_MUST_LEAVE * sample.cost(best):
            return replace(_best_tail(rotated, (False,), options), rotation=block)
    return best


def drowns_outputs(weight: Tensor) -> bool:
    """Whether outputs of ``weight [out, columns]`` are so weak that errors as large as those of others would drown
    them, and scales of their own cost little.

    One scale for all, or a rotation, leaves the same error in every output: in one of a 64th of the mean power, more
    than all of it at 3 bits. An output of zeros stays zero only under a scale of its own.
    """
    power = weight.square().mean(1)
    return SCALE_BITS / weight.shape[1] <= LITTLE and bool((power < WEAK * power.mean()).any())


def _best_tail(sample: _Sample, scalings: tuple[bool, ...], options: SourceOptions) -> SourceModel:
    """The best of `TAILS`, then of its neighbours, under each of ``scalings``."""
    if options.tail != "auto":
        return sample.best([SourceModel(float(options.tail), scaled) for scaled in scalings])
    best = sample.best([SourceModel(h, scaled) for scaled in scalings for h in TAILS])
    nearby = [best.tail - TAIL_STEP, best.tail, best.tail + TAIL_STEP]
    return sample.best([SourceModel(round(h, 3), best.row_scales) for h in nearby if h >= 0])


class _Sample:
    """A sample of columns with ``shares [n]``, what each stands for, encoded under one model after another.

    Columns are drawn in proportion to what they are expected to cost: to the code's error at their rate, and to what
    their weights reach beyond the range of a code for Gaussian weights. One weight far outside, in a column of high
    rate, can cost more than all other errors together, and a draw that treats columns alike misses it.
    """

    def __init__(self, weight: Tensor, columns: Tensor, shares: Tensor, code: SampleCode) -> None:
        self.weight, self.columns, self.shares = weight, columns, shares
        self.state_bits = min(code.state_bits, LARGEST_STATE_BITS)
        self.targets = weight[:SAMPLE_OUTPUTS, columns].t().contiguous()
        self.rates = [self._usable(rate) for rate in code.rates[columns].tolist()]
        self._code = code
        self._scales: dict[bool, Tensor] = {}
        self._costs: dict[SourceModel, float] = {}

    @classmethod
    def of(cls, weight: Tensor, code: SampleCode, generator: torch.Generator) -> _Sample:
        """Columns of ``weight [out, columns]``, by systematic sampling in the order of what is out of range."""
        count = min(SAMPLE_COLUMNS, max(4, weight.shape[1] // 16))
        part = weight[:SAMPLE_OUTPUTS]
        deviation = weight.square().mean().sqrt()
        beyond = (part.abs() - REACH * deviation).clamp_min(0).square().sum(0).double()
        within = part.square().sum(0).double() * 4.0 ** -code.rates.double()
        expected = code.costs.double().cpu() * (within + beyond) * (code.rates > 0)
        if not expected.sum() > 0:
            expected = torch.ones_like(expected)
        chance = expected / expected.sum()
        order = torch.argsort(beyond * code.costs.double().cpu(), stable=True)
        points = (torch.arange(count) + torch.rand((), generator=generator)).double() / count
        drawn = torch.searchsorted(chance[order].cumsum(0), points).clamp_max(len(order) - 1)
        columns, times = torch.unique(order[drawn], return_counts=True)
        return cls(weight, columns, times * code.costs.double().cpu()[columns] / chance[columns], code)

    def best(self, models: list[SourceModel]) -> SourceModel:
        """The cheapest of ``models``, the first of them in a tie."""
        return models[0] if len(models) == 1 else min(models, key=self.cost)

    def cost(self, model: SourceModel) -> float:
        """Cost of the error, times the factor that the bits for row scales would have saved elsewhere."""
        if model not in self._costs:
            bits = SCALE_BITS / self.weight.shape[1] if model.row_scales else 0.0
            self._costs[model] = self._error(model) * 4.0**bits
        return self._costs[model]

    def rotated(self, block: int) -> _Sample:
        """The same columns of the rotated weight."""
        return _Sample(rotate(self.weight.t(), block).t(), self.columns, self.shares, self._code)

    def _usable(self, rate: float) -> float:
        """The nearest rate, a multiple of 1/2, at which a column holds a state."""
        return min(max(rate, -(-2 * self.state_bits // self.targets.shape[1]) / 2), max_rate(self.state_bits))

    def _error(self, model: SourceModel) -> float:
        """Cost of the sample's squared error, at the best common factor."""
        outputs = self.targets.shape[1]
        if model.row_scales not in self._scales:
            self._scales[model.row_scales] = rms_scale(self.weight, model.row_scales)
        scale = self._scales[model.row_scales][:outputs]
        tables = value_tables(self.state_bits, self.rates, model.tail)
        search = CpuViterbi(outputs, self.state_bits, tables)
        found = [search(target, scale, rate)[1] for target, rate in zip(self.targets, self.rates, strict=True)]
        decoded = (torch.stack(found) * scale).double()
        targets, shares = self.targets.double(), self.shares[:, None]
        power = (shares * decoded.square()).sum()
        factor = (shares * targets * decoded).sum() / power if power > 0 else 0.0
        return float((shares * (targets - factor * decoded).square()).sum())
