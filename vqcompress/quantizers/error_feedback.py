"""Error feedback between columns: the second-moment machinery that all calibrated quantizers share.

Objective, for ``W [out, columns]`` and ``H = E[x xᵀ] [columns, columns]``: minimise ``tr((W - Ŵ) H (W - Ŵ)ᵀ)``. Columns
are quantized one after another; what a column got wrong is made up for by the columns still to come. Because H is the
same for every output, this stays exact when a whole column is coded as one vector or sequence.

A column still to come is coded, too: a code that leaves the share ``D_j`` of a target's energy as error takes up only
``1 - D_j`` of what it is asked for, and the rest is noise. With a cost ``xᵀ P x`` of what is left, ``x``, before the
last column is coded, the best target is ``P_j x / P_jj``, and before that choice the cost is that of ``P - (1 - D_j)
P_j P_jᵀ / P_jj``. From the last column to the first this is dynamic programming for a linear system with noise in
proportion to its controls. It is also the elimination of a Cholesky factorization whose pivots are raised to ``P_jj /
(1 - D_j)``, hence that of ``M = H + Λ`` with a diagonal Λ: feedback runs on M, and codes the weight ``m = M⁻¹ H w``.

With ``D = 0``, columns that answer in full, this is GPTQ (Frantar et al. 2023, arXiv 2210.17323, equation 3 and section
3.3), a zero-forcing decision feedback: an error of one column returns in the targets of others, which must be coded at
the same rate. With the D of the codes it is the minimum-mean-squared-error feedback that reaches the rate-distortion
function of Gaussian sources (Zamir, Kochman, Erez 2008, Achieving the Gaussian rate-distortion function by prediction,
arXiv cs/0611082).

With ``M⁻¹ = Uᵀ U`` (U upper triangular, processing order), ``P_jj = (1 - D_j) / U_jj²`` is what a unit of squared error
costs in column j: its sensitivity, by which `vqcompress.quantizers.column_rates` allocates bits.

Where H is known by ``s`` samples and a ridge, U is never made: everything costs ``s n`` operations an output instead of
``n²``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vqcompress.errors import CalibrationError
from vqcompress.moments.rate_distortion import water_level
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.moments.spectrum_sketch import SpectrumSketch
from vqcompress.quantizers.column_order import fitted_order
from vqcompress.quantizers.inverse_factor import inverse_upper_factor, raised_cholesky
from vqcompress.quantizers.unseen_inputs import with_unseen_inputs

BLOCK = 128  # columns whose feedback is applied lazily to all later ones in one matrix product
CORNER = 640  # columns that may change places among each other, at most
# Of an estimate from few samples: a tenth and ten times as much are up to 5 % worse on held-out samples of layer b
# (2048 for 640 columns).
ESTIMATE_DAMPING = 1e-3
# What damping an estimate may cost at the rate-distortion bound. On inputs that were not calibrated on, layers of three
# trained networks have least error at 1.1, 1.25 and 3 times (`benchmarks/damping.py`).
ALLOWED_RISE = 1.25
MOST_DAMPING = 0.1
LEAST_DAMPING = 1e-8  # where the search for a damping that works starts, if it was none
LARGEST_DISTORTION = 1 - 1e-4  # a column of rate 0 has 1, which would be an infinite pivot

EncodeColumn = Callable[[int, Tensor], Tensor]
"""``(column, target [out])`` -> decoded column ``[out]``; keeps its codes to itself."""

Factorize = Callable[[Tensor, Tensor, float, Tensor | None], tuple[Tensor, Tensor] | None]
"""``(H, order, damping, D in this order)`` -> U and its diagonal, as `inverse_upper_factor` returns them."""


@dataclass(frozen=True)
class Feedback(ABC):
    """A factored second moment.

    ``order [columns]`` is the processing order, ``sensitivity [columns]`` the cost of squared error in
    each column, in natural order (float64). ``distortion [columns]``, float64 in ``[0, 1)``, is the share of a target's
    energy that each column's code is expected to leave as error.
    """

    order: Tensor
    sensitivity: Tensor
    distortion: Tensor

    @abstractmethod
    def sweep(self, weight: Tensor, encode: EncodeColumn) -> Tensor:
        """Encode every column of ``weight [columns, out]`` (transposed, float32) with feedback; returns the decoded
        copy."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Feedback:
        """The same on another device."""

    def propagated_error(self) -> Tensor | None:
        """What earlier columns' errors add to each column's target, relative to its own error: float64 ``[columns]``.

        In natural order; ``None`` where it is not known, because U is not.
        """
        return None

    def corners(self) -> list[Tensor]:
        """Triangles ``[n, n]`` on the diagonal of U, from the first column to the last; none where U is not known."""
        return []

    def pivots(self) -> Tensor:
        """Those of M, float64 ``[columns]``: ``1 / U_jj²``."""
        return self.sensitivity / (1 - self.distortion)


def usual_damping(second_moment: SecondMoment, bits: float) -> float:
    """What an estimate is damped by, as a share of its mean diagonal, for codes of ``bits`` bits a weight.

    Codes rely most on the small eigenvalues, and those an estimate knows least: other inputs may have a thousand times
    as much power there. So it is damped by the most that costs next to nothing, `ALLOWED_RISE` at the rate-distortion
    bound: 1e-6 where a few directions have all the power, 1e-2 where none has. A moment of which nobody has counted the
    samples is taken for the true one, and damped by next to nothing.
    """
    if not second_moment.used:
        return LEAST_DAMPING
    least = ESTIMATE_DAMPING * min(1.0, second_moment.columns / second_moment.used)
    sketch, mean = SpectrumSketch.of(second_moment), float(second_moment.diagonal().double().mean())
    allowed = ALLOWED_RISE * sketch.bound(bits)
    low, high = math.log(least), math.log(MOST_DAMPING)
    while high - low > 0.05:
        middle = (low + high) / 2
        affordable = sketch.bound(bits, math.exp(middle) * mean) <= allowed
        low, high = (middle, high) if affordable else (low, middle)
    return math.exp(low)


def prepare_feedback(
    second_moment: SecondMoment,
    damping: float = 1e-3,
    factorize: Factorize = inverse_upper_factor,
    distortion: Tensor | None = None,
    order: Tensor | None = None,
) -> Feedback:
    """Factor ``second_moment`` in float64 with ``damping`` times its mean diagonal added.

    ``order [columns]`` is that in which columns are processed, by default falling H_jj.

    ``distortion [columns]`` in ``[0, 1]`` is that of the columns' codes on a source of unit variance; ``None`` for
    columns that answer in full. Rank-deficient moments (fewer samples than columns, dead inputs) are fine: damping is
    raised tenfold until ``factorize`` succeeds. Raises `CalibrationError` when values are not finite or the diagonal is
    negative.
    """
    if not second_moment.is_finite() or (second_moment.diagonal() < 0).any():
        raise CalibrationError(
            "a second moment holds NaN, infinite or negative diagonal values; the activations it was recorded from "
            "overflowed: record again in float32 or bfloat16"
        )
    if distortion is not None:
        distortion = distortion.double().clamp_max(LARGEST_DISTORTION).to(second_moment.device)
    if second_moment.samples is not None:
        return _sample_feedback(second_moment, max(damping, 0.0 if second_moment.ridge else LEAST_DAMPING), distortion)
    square, diagonal = second_moment.dense(), second_moment.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True) if order is None else order.to(diagonal.device)
    unit = float(diagonal.double().mean()) or 1.0
    ordered = None if distortion is None else distortion[order]
    while (found := factorize(square, order, damping * unit, ordered)) is None:
        damping = max(10 * damping, LEAST_DAMPING)
    factor, on_diagonal = found
    expected = torch.zeros(len(order), dtype=torch.float64, device=factor.device) if distortion is None else distortion
    pivots = torch.empty_like(expected)
    pivots[order] = on_diagonal.square().reciprocal()
    return SquareFeedback(order, pivots * (1 - expected), expected, factor)


@dataclass(frozen=True)
class FeedbackPlanner:
    """Feedback from ``second_moment`` under ``damping``, before and after the columns' rates are known.

    ``order`` as in `prepare_feedback`. The moment may be on an accelerator, and is factored there; results are on the
    CPU.
    """

    second_moment: SecondMoment
    damping: float
    order: Tensor | None = None
    _at_one_rate: dict[float, _Factored] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def for_setting(cls, second_moment: SecondMoment, damping: float | Literal["auto"], bits: float) -> FeedbackPlanner:
        """With ``damping``, or `usual_damping` at ``bits``, and with `with_unseen_inputs`."""
        second_moment = with_unseen_inputs(second_moment, bits)
        return cls(second_moment, usual_damping(second_moment, bits) if damping == "auto" else damping)

    def costs(self, sizes: Tensor, bits: float, *, scaled: bool = False) -> Tensor:
        """What columns of ``sizes [columns]`` (RMS of their weights, to a common factor) cost as sources.

        Float64 ``[columns]``, from the feedback of columns that all have ``bits`` bits. Rates that follow from these
        costs change them again, but where columns can stand in for each other that goes back and forth. A column that
        is ``scaled`` to its targets may decode to more than its weights' energy: to the noise of the columns before it.
        """
        energy = sizes.double().cpu().square()
        found = self._factored(bits)
        costs = found.pivots * energy
        if found.noise is None or not scaled:
            return costs
        return torch.maximum(costs, (1 + found.noise) * water_level(costs, bits))

    def in_fitted_order(
        self, sizes: Tensor, bits: float, distortions: Mapping[float, float], price: float
    ) -> FeedbackPlanner:
        """The same with columns in an order that fits the rates that there are (`column_order.fitted_order`).

        ``sizes`` and ``bits`` as in `costs`. Itself where U is not known.
        """
        found = self._factored(bits)
        if not found.corners:
            return self
        energy = sizes.double().cpu().square()
        order = fitted_order(found.order, found.corners, energy, distortions, price)
        return FeedbackPlanner(self.second_moment, self.damping, order)

    def feedback(self, distortion: Tensor) -> Feedback:
        """`prepare_feedback` for codes of ``distortion [columns]``."""
        return prepare_feedback(self.second_moment, self.damping, distortion=distortion, order=self.order).to("cpu")

    def _factored(self, bits: float) -> _Factored:
        if bits not in self._at_one_rate:  # a layer asks more than once, and factors take as long as codes
            found = self.feedback(torch.full((self.second_moment.columns,), 4.0**-bits, dtype=torch.float64))
            self._at_one_rate[bits] = _Factored(found.pivots(), found.propagated_error(), found.order, found.corners())
        return self._at_one_rate[bits]


@dataclass(frozen=True)
class _Factored:
    """What is kept of a `Feedback`: all but the whole factor."""

    pivots: Tensor
    noise: Tensor | None
    order: Tensor
    corners: list[Tensor]


@dataclass(frozen=True)
class SquareFeedback(Feedback):
    """``factor [columns, columns]`` is the float32 upper factor U in processing order."""

    factor: Tensor

    def sweep(self, weight: Tensor, encode: EncodeColumn) -> Tensor:
        """Errors of a block are pushed into the targets of all later columns.

        ``m = w - M⁻¹ Λ w``: as if each column had made the error ``U Λ w``, too, before the first is coded.
        """
        order, factor = self.order.tolist(), self.factor
        target = weight[self.order].float()
        decoded, taken = torch.empty_like(target), (1 - self.distortion)[self.order].float()
        held_back = self._held_back()[:, None] * target
        holds_back = bool(self.distortion.any())
        for start in range(0, len(order), BLOCK):
            stop = min(start + BLOCK, len(order))
            block = slice(start, stop)
            lead = factor[block, start:] @ held_back[start:] if holds_back else None
            part = _Block(factor[block, block], taken[block], lead)
            errors = part.sweep(target[block], decoded[block], order[block], encode)
            target[stop:] -= factor[start:stop, stop:].t() @ errors
        result = torch.empty_like(decoded)
        result[self.order] = decoded
        return result

    def propagated_error(self) -> Tensor:
        """The variance that errors of earlier columns add to each column's target, by what its own error costs.

        Where all columns cost the same after coding, ``e_i² = θ U_ii²``, but for the share ``1 - D_i`` that they take
        up, the target of column j has gained the variance ``Σ_i (U_ij / U_ii)² e_i² = θ Σ_i U_ij²`` over the columns
        ``i`` before it; this is that sum by ``U_jj²``.
        """
        gained = torch.zeros_like(self.sensitivity)
        for lines in self.factor.split(BLOCK):  # in float64, which the whole would take four times the moment for
            gained[self.order] += lines.double().square().sum(0)
        return (gained * self.pivots() - 1).clamp_min(0)

    def corners(self) -> list[Tensor]:
        """As few as have at most `CORNER` columns, and alike in size."""
        count = -(-len(self.order) // CORNER)
        places = torch.arange(len(self.order), device=self.factor.device).chunk(count)
        return [self.factor[place[0] : place[-1] + 1, place[0] : place[-1] + 1].clone() for place in places]

    def to(self, device: torch.device | str) -> SquareFeedback:
        """The same on another device."""
        moved = (self.order, self.sensitivity, self.distortion, self.factor)
        return SquareFeedback(*(tensor.to(device) for tensor in moved))

    def _held_back(self) -> Tensor:
        """Λ in processing order, float32 ``[columns]``."""
        return (self.pivots() * self.distortion)[self.order].float()


@dataclass(frozen=True)
class SampleFeedback(Feedback):
    """Feedback from ``X [s, columns]`` and a ridge, block by block in processing order.

    ``samples[b] [s, block]`` are X's columns; ``factors[b] [block, block]`` is the upper factor of the inverse of what
    M leaves of the block when all later columns are free to answer; ``answers[b] [s, block]`` say how errors already
    made, ``X d [s, out]``, move the block's targets. ``held_back[b] [block]`` is Λ by the whole ridge of M, and
    ``shared[b] [s, block]`` how the samples ``X`` of what all columns hold back comes back to them.
    """

    samples: list[Tensor]
    factors: list[Tensor]
    answers: list[Tensor]
    held_back: list[Tensor]
    shared: list[Tensor]

    def sweep(self, weight: Tensor, encode: EncodeColumn) -> Tensor:
        """Instead of pushing errors on, keeps what they do to the samples, ``X d [s, out]``."""
        decoded, columns = torch.empty_like(weight), self.order.split(BLOCK)
        taken = (1 - self.distortion).float()
        withheld = torch.zeros(len(self.samples[0]), weight.shape[1], device=weight.device)
        for wanted, samples, share in zip(columns, self.samples, self.held_back, strict=True):
            withheld.addmm_(samples, share[:, None] * weight[wanted].float())
        effect = torch.zeros_like(withheld)
        blocks = zip(columns, self.samples, self.factors, self.answers, self.held_back, self.shared, strict=True)
        for wanted, samples, factor, answer, share, shared in blocks:
            original = weight[wanted].float()
            original = original - share[:, None] * original + shared.t() @ withheld
            target, coded = original - answer.t() @ effect, torch.empty_like(original)
            _Block(factor, taken[wanted]).sweep(target, coded, wanted.tolist(), encode)
            decoded[wanted] = coded
            effect.addmm_(samples, coded - original)
        return decoded

    def to(self, device: torch.device | str) -> SampleFeedback:
        """The same on another device."""
        blockwise = (self.samples, self.factors, self.answers, self.held_back, self.shared)
        lists = ([block.to(device) for block in blocks] for blocks in blockwise)
        return SampleFeedback(
            *(tensor.to(device) for tensor in (self.order, self.sensitivity, self.distortion)), *lists
        )


@dataclass(frozen=True)
class _Block:
    """Columns with feedback among them: the upper ``factor [n, n]``, the share ``taken [n]`` that each takes up of what
    it is asked for, and the errors over U's diagonal, ``lead [n, out]``, that they start with."""

    factor: Tensor
    taken: Tensor
    lead: Tensor | None = None

    def sweep(self, target: Tensor, decoded: Tensor, order: list[int], encode: EncodeColumn) -> Tensor:
        """Encode the columns into ``decoded``; returns errors over U's diagonal."""
        factor, taken = self.factor, self.taken
        errors = torch.zeros_like(target) if self.lead is None else self.lead
        for j, column in enumerate(order):
            target[j] -= factor[: j + 1, j] @ errors[: j + 1]
            decoded[j] = encode(column, target[j] / taken[j])
            errors[j] += (target[j] - decoded[j]) / factor[j, j]
        return errors


def _sample_feedback(moment: SecondMoment, damping: float, distortion: Tensor | None) -> SampleFeedback:
    """Factor samples with ``damping`` times the mean diagonal added to the ridge; both must not be 0.

    Let T be the columns after a block B, R the diagonal of ridge and Λ, and d the errors, ``c = X d`` over what is
    coded. The later columns' best answer leaves the cost ``(c + X_B d_B)ᵀ G (c + X_B d_B) + d_Bᵀ R_B d_B`` with ``G =
    (X_T R_T⁻¹ X_Tᵀ + 1)⁻¹``: a quadratic form in the block's ``K = R_B + X_Bᵀ G X_B``, least at ``-K⁻¹ X_Bᵀ G c``. The
    pivots of K are raised as those of M are. Float64; G goes from the last block to the first.
    """
    samples, diagonal = moment.values, moment.diagonal()
    ridge = moment.ridge + damping * float(diagonal.double().mean())
    order = torch.argsort(diagonal, descending=True, stable=True)
    expected = torch.zeros(len(order), dtype=torch.float64, device=moment.device) if distortion is None else distortion
    blocks = [samples[:, wanted] for wanted in order.split(BLOCK)]
    gram = torch.eye(len(samples), dtype=torch.float64, device=moment.device)
    factors, answers, held_back, ridges, costs = [], [], [], [], []
    for block, kept in zip(reversed(blocks), reversed(expected[order].split(BLOCK)), strict=True):
        wide = block.double()
        response = torch.cholesky_solve(wide, torch.linalg.cholesky(gram))
        form = wide.t() @ response
        form.diagonal().add_(ridge)
        factor = _inverse_factor(form, kept)
        pivots = factor.diagonal().square().reciprocal()
        ridges.append(ridge + kept * pivots)
        held_back.append((kept * pivots / ridges[-1]).float())
        costs.append((1 - kept) * pivots)
        factors.append(factor.float())
        answers.append((response @ factor.t() @ factor).float())
        gram.addmm_(wide / ridges[-1], wide.t())
    sensitivity = torch.empty_like(expected)
    sensitivity[order] = torch.cat(costs[::-1])
    lower = torch.linalg.cholesky(gram)
    shared = [torch.cholesky_solve(block / own, lower).float() for block, own in zip(blocks, ridges[::-1], strict=True)]
    lists = (blocks, factors[::-1], answers[::-1], held_back[::-1], shared)
    return SampleFeedback(order, sensitivity, expected, *lists)


def _inverse_factor(matrix: Tensor, distortion: Tensor) -> Tensor:
    """Upper U with ``(matrix + Λ)⁻¹ = Uᵀ U``; Λ as in `raised_cholesky`."""
    lower = raised_cholesky(matrix.flip(0, 1), distortion.flip(0))
    assert lower is not None  # the ridge is above 0
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
