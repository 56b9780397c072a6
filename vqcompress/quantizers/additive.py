"""The additive quantizer: vectors of neighbouring outputs as sums of codewords, error feedback between columns.

Egiazarian et al. 2024 (AQLM, arXiv 2401.06118) group along the inputs and optimise codes and codebooks with Adam; VQDM
(arXiv 2409.00492) uses that for diffusion models. Along the outputs, feedback between inputs (Frantar et al. 2023,
arXiv 2210.17323) is exact, every step has a closed form, and columns get rates by reverse water-filling. Objective:
``tr((W - Ŵ) H (W - Ŵ)ᵀ)`` for ``W [out, columns]``, ``H [columns, columns]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec
from vqcompress.formats.column_scales import COLUMN_SCALES_ON_DISK, column_scale_factors, pack_column_scales
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.additive_columns import AdditiveColumns
from vqcompress.quantizers.codebooks import prefix_errors, refine_codebooks, residual_codebooks
from vqcompress.quantizers.column_order import price_of_a_bit
from vqcompress.quantizers.column_rates import AdditiveBudget, RatePlan
from vqcompress.quantizers.error_feedback import FeedbackPlanner
from vqcompress.quantizers.outliers import NO_OUTLIERS, input_outliers
from vqcompress.quantizers.quantizer import Quantizer
from vqcompress.quantizers.scales import Auto, choose_column_scales, choose_scale, coded_energy
from vqcompress.quantizers.setting_values import SHARE, check_setting, check_types
from vqcompress.quantizers.weight_vectors import (
    COMPONENT_CODEBOOK,
    check_geometry,
    own_code_bits,
    sample_layers,
    sample_vectors,
)

START_BEAM = 4  # enough for a start, and for measuring the error of a rate
SPREAD = 2  # codebooks beyond the mean rate that the most sensitive columns may use
SAMPLE = 16384  # vectors that codebooks are learned from: 64 a codeword of the largest usual codebook
SHARED_CODE_BITS = 6  # 8 code better for their bits, but column rates in steps of 6/8 bit save more
# Shares of columns around the mean rate, as water-filling allocates them; the highest rates serve the most sensitive
# layers.
SHARED_RATES = {-2: 0.08, -1: 0.27, 0: 0.33, 1: 0.14, 2: 0.1, 3: 0.05, 4: 0.03}
KEEP_DESCENDING = 0.99  # a pass that leaves more than this share of the error is the last


@dataclass(frozen=True)
class AdditiveSettings:
    """Geometry of the code, and how hard to search.

    ``dimension`` (4, 8, 16): outputs a vector; ``code_bits`` (4 to 12): bits a code, ``None`` chooses by the layer's
    size; ``codebooks``: how many, ``None`` derives it from ``bits``. ``beam``: partial sums kept by the search.
    ``rounds``: of codebook learning. ``coordinate_descent``: at most so many passes after the feedback sweep
    (codebooks, scales, codes), as long as they reduce the error. ``row_scales``: a scale for each output, or one for
    all; ``"auto"`` decides by what their spread costs. ``column_scales``: a factor for each column; ``"auto"`` where
    columns differ enough in size to pay for them. ``outliers``: whether few weights beyond the code's range are stored
    beside it. ``count_codebooks``: whether ``bits`` pays for a layer's own codebooks; otherwise they come on top.
    ``damping``: share of its mean diagonal added to the second moment.
    """

    dimension: int = 8
    code_bits: int | None = None
    codebooks: int | None = None
    beam: int = 16
    rounds: int = 8
    coordinate_descent: int = 3
    row_scales: bool | Auto = "auto"
    column_scales: bool | Auto = "auto"
    outliers: bool = True
    count_codebooks: bool = True
    damping: float = 1e-3

    def __post_init__(self) -> None:
        check_types("additive", self)
        check_geometry("additive", self.dimension, self.code_bits, self.codebooks)
        check_setting("additive", "beam", self.beam, 1 <= self.beam <= 4096, "1 to 4096")
        check_setting("additive", "rounds", self.rounds, 0 <= self.rounds <= 1000, "0 to 1000")
        passes = self.coordinate_descent
        check_setting("additive", "coordinate_descent", passes, 0 <= passes <= 1000, "0 to 1000")
        check_setting("additive", "damping", self.damping, 0 < self.damping <= 1, SHARE)


def quantize_additive(
    weight: Tensor,
    second_moment: SecondMoment | None,
    settings: AdditiveSettings,
    bits: float,
    seed: int,
    shared_codebooks: Tensor | None = None,
) -> tuple[AdditiveSpec, dict[str, Tensor]]:
    """Encode ``weight [out, columns]`` (float32, finite) so that all that is stored takes at most ``bits`` bits a
    weight.

    ``second_moment`` is H, or ``None`` for the identity. ``shared_codebooks [M, 2**b, d]`` fix the geometry and are not
    stored; a layer's own are, and ``settings`` may leave them uncounted. ``seed`` picks the sample and the start of
    codebook learning. A second moment on an accelerator is factored there; the search runs on the CPU, and the stored
    tensors lie where ``weight`` was. Raises `UnfitWeightError` when no code fits.
    """
    home, weight = weight.device, weight.cpu()
    second_moment = None if second_moment is None else second_moment.as_square()
    outliers = input_outliers(weight, second_moment, bits) if settings.outliers else NO_OUTLIERS
    weight, bits = outliers.removed_from(weight), bits - outliers.bits_per_weight(weight)
    if (column_scales := choose_column_scales(weight, settings.column_scales)) is not None:
        factors = column_scale_factors(column_scales)
        weight = weight / factors
        if second_moment is not None:  # of the inputs that the scales are moved to
            outer = factors.to(second_moment.device)
            scaled_square = second_moment.dense() * outer * outer[:, None]
            second_moment = replace(second_moment, square=scaled_square)
    inputs = None if second_moment is None else FeedbackPlanner.for_setting(second_moment, settings.damping, bits)
    second_moment = None if second_moment is None else second_moment.to("cpu")
    alike = torch.ones(weight.shape[1])
    sensitivity = alike if inputs is None else inputs.costs(alike, bits)
    scale, per_output = choose_scale(weight, settings.row_scales)
    scaled = column_scales is not None
    budget = AdditiveBudget(len(weight), sensitivity, bits, row_scales=per_output, column_scales=scaled)
    if shared_codebooks is None:
        codebooks, plan, errors = _learn(weight, scale, budget, settings, bits, seed)
    else:
        codebooks = shared_codebooks.cpu().float()
        plan, errors = _plan_for(codebooks, weight, scale, budget, seed)
    if inputs is not None and not budget.flat:
        counted = settings.count_codebooks and shared_codebooks is None
        inputs, plan = _in_fitted_order(inputs, plan, budget, codebooks, errors, bits, counted)
        codebooks = codebooks if shared_codebooks is not None else codebooks[: int(plan.rates.max())]
    columns = AdditiveColumns(weight, scale, per_output, codebooks, plan, settings.beam)
    distortion = torch.tensor([errors[rate] for rate in plan.rates.tolist()])
    columns.sweep(None if inputs is None else inputs.feedback(distortion))
    _improve(columns, second_moment, settings.coordinate_descent, own=shared_codebooks is None)
    spec, tensors = columns.packed(None if shared_codebooks is None else COMPONENT_CODEBOOK)
    spec, tensors = replace(spec, outliers=len(outliers)), tensors | outliers.tensors()
    if column_scales is not None:
        spec = replace(spec, column_scales=True)
        tensors[COLUMN_SCALES_ON_DISK] = pack_column_scales(column_scales)
    return spec, {name: tensor.to(home) for name, tensor in tensors.items()}


def learn_shared_codebooks(
    weights: Iterable[Tensor], settings: AdditiveSettings, seed: int, bits: float = 3.0
) -> Tensor:
    """Codebooks float16 ``[M, 2**b, d]`` for all ``weights`` (``[out, in]`` or ``[out, in, kh, kw]``) of a component.

    Learned from scaled vectors sampled over all of them, with the mix of rates that layers of ``bits`` bits a weight
    use.
    """
    count, size, dimension = shared_codebook_shape(settings, bits)
    mean = _mean_codes(bits, dimension, (size - 1).bit_length())
    vectors = sample_layers(weights, dimension, settings.row_scales, settings.column_scales, seed)
    codebooks = residual_codebooks(vectors, count, size, START_BEAM, seed)
    shares = torch.tensor([SHARED_RATES.get(rate - mean, 0.0) for rate in range(count + 1)])
    shares = shares if shares.sum() else torch.ones(count + 1)
    generator = torch.Generator().manual_seed(seed)
    rates = torch.multinomial(shares, len(vectors), replacement=True, generator=generator)
    return refine_codebooks(codebooks, vectors, rates, settings.beam, settings.rounds).half()


def shared_codebook_shape(settings: AdditiveSettings, bits: float) -> tuple[int, int, int]:
    """``[M, 2**b, d]`` of what `learn_shared_codebooks` learns."""
    code_bits = settings.code_bits or SHARED_CODE_BITS
    count = settings.codebooks or _mean_codes(bits, settings.dimension, code_bits) + max(SHARED_RATES)
    return count, 1 << code_bits, settings.dimension


def _mean_codes(bits: float, dimension: int, code_bits: int) -> int:
    return max(1, round(bits * dimension / code_bits))


def _learn(
    weight: Tensor, scale: Tensor, budget: AdditiveBudget, settings: AdditiveSettings, bits: float, seed: int
) -> tuple[Tensor, RatePlan, dict[int, float]]:
    """Codebooks for a sample of the weight's vectors, the rates that its columns get, and `prefix_errors`.

    The error at a rate depends on the codebooks, and what the codebooks should fit depends on the rates, so the plan is
    made again half-way.
    """
    dimension, beam, counted = settings.dimension, settings.beam, settings.count_codebooks
    code_bits = settings.code_bits or own_code_bits(weight.numel(), dimension, bits, budget.flat, counted)
    codebook_bytes = (2 * dimension << code_bits) if counted else 0
    count = settings.codebooks or max(1, math.ceil(bits * dimension / code_bits) + (0 if budget.flat else SPREAD))
    vectors, columns = sample_vectors(weight, scale, dimension, SAMPLE, seed)
    codebooks = residual_codebooks(vectors, count, 1 << code_bits, START_BEAM, seed)
    for rounds in (settings.rounds // 2, settings.rounds - settings.rounds // 2):
        errors = prefix_errors(codebooks, vectors, START_BEAM)
        plan: RatePlan = budget.plan(errors, dimension, code_bits, codebook_bytes)
        codebooks = refine_codebooks(codebooks, vectors, plan.rates[columns], beam, rounds)
    return codebooks[: int(plan.rates.max())], plan, errors


def _plan_for(
    codebooks: Tensor, weight: Tensor, scale: Tensor, budget: AdditiveBudget, seed: int
) -> tuple[RatePlan, dict[int, float]]:
    """The rates that columns get with these codebooks, and `prefix_errors`."""
    _, size, dimension = codebooks.shape
    vectors, _ = sample_vectors(weight, scale, dimension, SAMPLE // 4, seed)
    errors = prefix_errors(codebooks, vectors, START_BEAM)
    return budget.plan(errors, dimension, (size - 1).bit_length()), errors


def _in_fitted_order(
    inputs: FeedbackPlanner,
    plan: RatePlan,
    budget: AdditiveBudget,
    codebooks: Tensor,
    errors: Mapping[int, float],
    bits: float,
    counted: bool,
) -> tuple[FeedbackPlanner, RatePlan]:
    """Feedback in an order of columns that fits whole codes, and its plan; or those given, where they cost less."""
    count, size, dimension = codebooks.shape
    code_bits = (size - 1).bit_length()
    usable = {rate: error for rate, error in errors.items() if rate <= count}
    a_code = code_bits / dimension
    by_bits = {rate * a_code: error for rate, error in usable.items()}
    price = price_of_a_bit(budget.sensitivity, float(plan.rates.double().mean()) * a_code, by_bits)
    alike = torch.ones(len(plan.rates))
    ordered = inputs.in_fitted_order(alike, bits, by_bits, price)
    fitted = budget.with_sensitivity(ordered.costs(alike, bits))
    other = fitted.plan(usable, dimension, code_bits, 2 * dimension * size if counted else 0)
    return (ordered, other) if other.error < plan.error else (inputs, plan)


def _improve(columns: AdditiveColumns, second_moment: SecondMoment | None, passes: int, own: bool) -> None:
    error = columns.error(second_moment)
    for _ in range(passes):
        if own:
            columns.refit_codebooks(second_moment)
        columns.refit_scale(second_moment)
        columns.descend(second_moment)
        before, error = error, columns.error(second_moment)
        if error > KEEP_DESCENDING * before:
            break
    columns.refit_scale(second_moment)


ADDITIVE = Quantizer(
    quantize_additive,
    AdditiveSettings,
    learn_codebooks=learn_shared_codebooks,
    codebook_shape=shared_codebook_shape,
    energy=coded_energy,
)
