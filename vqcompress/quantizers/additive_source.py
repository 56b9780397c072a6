"""What the vectors of a weight look like: a sample of them, codebooks learned from it, and the column rates that follow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vqcompress.bitpack import packed_bytes
from vqcompress.errors import RecipeError
from vqcompress.formats.column_scales import column_scale_factors, column_scales_shape
from vqcompress.matrix_view import to_matrix
from vqcompress.quantizers.codebooks import prefix_errors, refine_codebooks, residual_codebooks
from vqcompress.quantizers.column_rates import RatePlan, plan_rates
from vqcompress.quantizers.scales import choose_gains, choose_scale, divide_by_scale

START_BEAM = 4  # enough for a start, and for measuring what a rate is worth
SPREAD = 2  # codebooks beyond the mean rate that the most sensitive columns may use
FLAT = 1.5  # sensitivities within this ratio: all columns get one rate
SAMPLE = 16384  # vectors that codebooks are learned from: 64 a codeword of the largest usual codebook
EXTREMES = (
    1 / 16
)  # of a sample, the vectors of largest norm: 3 % less error on Gaussian weights, a quarter on heavy tails
LAYER_SAMPLE = 4096  # vectors that one of many layers gives at most
SHARED_SAMPLE = 65536


def sample_vectors(weight: Tensor, scale: Tensor, dimension: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most ``count`` vectors ``[n, d]`` of the scaled ``weight [rows, columns]`` and their columns, int64 ``[n]``.

    A random sample, of which a share is given to the vectors of largest norm: codebooks that never saw the outliers of a
    heavy-tailed weight miss them by so much that a hundred vectors make a fifth of the error.
    """
    columns = F.pad(divide_by_scale(weight, scale).t(), (0, -len(weight) % dimension))
    vectors = columns.reshape(-1, dimension)
    chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    if len(vectors) > count:
        extremes = int(count * EXTREMES)
        longest = vectors.square().sum(1).topk(extremes).indices
        chosen = torch.unique(torch.cat([chosen[: count - extremes], longest]))
    return vectors[chosen].contiguous(), chosen // (len(vectors) // len(columns))


def sample_layers(
    weights: Iterable[Tensor],
    dimension: int,
    row_scales: bool | Literal["auto"],
    gains: bool | Literal["auto"],
    seed: int,
) -> Tensor:
    """Scaled vectors ``[n, d]`` of many weights (``[out, in]`` or ``[out, in, kh, kw]``); large ones give more, up to a limit.

    Raises `RecipeError` when there is no weight at all.
    """
    parts = []
    for index, weight in enumerate(weights):
        matrix = to_matrix(weight).detach().float().cpu()
        codes = choose_gains(matrix, gains)
        matrix = matrix if codes is None else matrix / column_scale_factors(codes)
        scale, _ = choose_scale(matrix, row_scales)
        parts.append(sample_vectors(matrix, scale, dimension, LAYER_SAMPLE, seed + index)[0])
    if not parts:
        raise RecipeError("no weights to learn shared codebooks from: the component has no layer to quantize")
    vectors = torch.cat(parts)
    return vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:SHARED_SAMPLE]]


class RateBudget:
    """Bytes for the codes of a weight ``[rows, columns]``, and the columns that compete for them."""

    def __init__(self, rows: int, sensitivity: Tensor, bits: float, per_row: bool, gained: bool = False) -> None:
        self.rows, self.sensitivity = rows, sensitivity
        # A single scale's two bytes are not charged: they would push one column of a weight that fits exactly down a rate.
        self.nbytes = int(bits * rows * len(sensitivity) / 8) - (2 * rows if per_row else 0)
        self.nbytes -= column_scales_shape(len(sensitivity))[1] if gained else 0

    @property
    def flat(self) -> bool:
        """Whether all columns matter alike."""
        return bool(self.sensitivity.max() <= FLAT * self.sensitivity.min())

    def plan(self, errors: dict[int, float], dimension: int, code_bits: int, codebook_bytes: int = 0) -> RatePlan:
        """Column rates for a code with these `prefix_errors`, each codebook that is used costing ``codebook_bytes``.

        Raises `RecipeError` when not even one code for some columns fits.
        """
        vectors, best, least = -(-self.rows // dimension), None, math.inf
        for top in range(max(1, min(errors)), max(errors) + 1):
            usable = {rate: error for rate, error in errors.items() if rate <= top}
            plan = plan_rates(
                self.sensitivity,
                usable,
                lambda rate: packed_bytes(vectors * rate, code_bits),
                self.nbytes - top * codebook_bytes,
            )
            cost = math.inf if plan is None else self._cost(plan, errors)
            if cost < least:
                best, least = plan, cost
        if best is None or int(best.rates.max()) == 0:
            raise RecipeError(
                f"a weight of {self.rows} x {len(self.sensitivity)} is too small for additive codes of {code_bits} bits "
                f"within {self.nbytes} bytes; share codebooks between layers, raise bits, or keep it dense"
            )
        return best

    def _cost(self, plan: RatePlan, errors: dict[int, float]) -> float:
        by_rate = torch.tensor([errors.get(rate, 0.0) for rate in range(max(errors) + 1)], dtype=torch.float64)
        return float((self.sensitivity.double() * by_rate[plan.rates]).sum())


def learn_for_budget(
    vectors: Tensor,
    columns: Tensor,
    budget: RateBudget,
    *,
    count: int,
    code_bits: int,
    codebook_bytes: int,
    beam: int,
    rounds: int,
    seed: int,
) -> tuple[Tensor, RatePlan]:
    """Codebooks ``[M, K, d]`` for sample ``vectors [n, d]`` of ``columns [n]``, together with the rates that these columns get.

    What a rate is worth depends on the codebooks and what the codebooks should fit on the rates, so the plan is made
    again half-way.
    """
    dimension = vectors.shape[1]
    codebooks = residual_codebooks(vectors, count, 1 << code_bits, START_BEAM, seed)
    for part in (rounds // 2, rounds - rounds // 2):
        errors = prefix_errors(codebooks, vectors, START_BEAM)
        plan: RatePlan = budget.plan(errors, dimension, code_bits, codebook_bytes)
        codebooks = refine_codebooks(codebooks, vectors, plan.rates[columns], beam, part)
    return codebooks[: int(plan.rates.max())], plan
