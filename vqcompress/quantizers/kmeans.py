"""Residual k-means: the plain vector quantizer of the field, a baseline.

Codebooks one after another by k-means on what the ones before leave over (faiss), vectors weighted by the power of
their input, codes chosen greedily, no error feedback. Stored in the same format as `vqcompress.quantizers.additive`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.additive_columns import AdditiveColumns
from vqcompress.quantizers.codebooks import prefix_errors, residual_codebooks
from vqcompress.quantizers.column_rates import AdditiveBudget, RatePlan
from vqcompress.quantizers.outliers import NO_OUTLIERS, input_outliers
from vqcompress.quantizers.quantizer import Quantizer
from vqcompress.quantizers.scales import Auto, choose_scale
from vqcompress.quantizers.setting_values import check_types
from vqcompress.quantizers.weight_vectors import (
    COMPONENT_CODEBOOK,
    check_geometry,
    own_code_bits,
    sample_layers,
    sample_vectors,
)

SHARED_CODE_BITS = 8
SAMPLE = 65536  # vectors that k-means sees: 256 a centroid of the usual codebook
GREEDY = 1  # beam
ROUNDS = 40  # of k-means a codebook; nothing refines them later


@dataclass(frozen=True)
class KMeansSettings:
    """``dimension`` (4, 8, 16): outputs a vector; ``code_bits`` (4 to 12): bits a code, ``None`` for 8, or fewer where
    a small layer stores its own codebooks; ``codebooks``: how many, ``None`` derives it from ``bits``; ``row_scales``:
    a scale for each output, or one for all, ``"auto"`` decides by what their spread costs; ``outliers``: whether few
    weights beyond the code's range are stored beside it.
    """

    dimension: int = 8
    code_bits: int | None = None
    codebooks: int | None = None
    row_scales: bool | Auto = "auto"
    outliers: bool = True

    def __post_init__(self) -> None:
        check_types("kmeans", self)
        check_geometry("kmeans", self.dimension, self.code_bits, self.codebooks)


def quantize_kmeans(
    weight: Tensor,
    second_moment: SecondMoment | None,
    settings: KMeansSettings,
    bits: float,
    seed: int,
    shared_codebooks: Tensor | None = None,
) -> tuple[AdditiveSpec, dict[str, Tensor]]:
    """Encode ``weight [out, columns]`` (float32, finite) so that all that is stored takes at most ``bits`` bits a
    weight.

    Of ``second_moment`` only the diagonal is used. Where ``bits`` is no whole number of codes, columns of more power
    get one code more than others. ``shared_codebooks [M, 2**b, d]`` fix the geometry and are not stored. Raises
    `UnfitWeightError` when no code fits.
    """
    home, weight = weight.device, weight.cpu()
    outliers = input_outliers(weight, second_moment, bits) if settings.outliers else NO_OUTLIERS
    weight, bits = outliers.removed_from(weight), bits - outliers.bits_per_weight(weight)
    if second_moment is None:
        power = torch.ones(weight.shape[1])
    else:
        power = second_moment.as_square().diagonal().double().cpu().clamp(min=0)
        power = power if power.any() else torch.ones_like(power)
    scale, per_output = choose_scale(weight, settings.row_scales)
    budget = AdditiveBudget(len(weight), power, bits, row_scales=per_output)
    if shared_codebooks is None:
        own = _OwnCodebooks.of(weight.numel(), settings, bits)
        vectors, columns = sample_vectors(weight, scale, settings.dimension, SAMPLE, seed)
        codebooks = own.learn(vectors, power[columns].float(), seed)
        plan = own.plan(budget, codebooks, vectors)
        codebooks = codebooks[: int(plan.rates.max())]
    else:
        codebooks = shared_codebooks.cpu().float()
        _, size, dimension = codebooks.shape
        vectors, _ = sample_vectors(weight, scale, dimension, SAMPLE, seed)
        code_bits = (size - 1).bit_length()
        plan = budget.plan(_adjacent_rates(codebooks, vectors, bits * dimension / code_bits), dimension, code_bits)
    coded = AdditiveColumns(weight, scale, per_output, codebooks, plan, GREEDY)
    coded.sweep(None)
    spec, tensors = coded.packed(None if shared_codebooks is None else COMPONENT_CODEBOOK)
    spec, tensors = replace(spec, outliers=len(outliers)), tensors | outliers.tensors()
    return spec, {name: tensor.to(home) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class _OwnCodebooks:
    """``count`` codebooks of ``2**code_bits`` words that a layer stores itself, ``bytes_each``, and the ``mean_rate``
    in codes a vector that its bits then pay for."""

    count: int
    code_bits: int
    bytes_each: int
    mean_rate: float

    @classmethod
    def of(cls, weights: int, settings: KMeansSettings, bits: float) -> _OwnCodebooks:
        """As many as ``bits`` a weight can use: each lowers the mean rate."""
        dimension = settings.dimension
        code_bits = settings.code_bits or own_code_bits(weights, dimension, bits, flat=True, counted=True)
        bytes_each = 2 * dimension << code_bits

        def mean_rate(count: int) -> float:
            stored = 16 + 8 * count * bytes_each  # a scale, and codebooks
            return (bits - stored / weights) * dimension / code_bits

        count = settings.codebooks or next(count for count in itertools.count(1) if mean_rate(count) <= count)
        mean = mean_rate(count)
        return cls(settings.codebooks or max(1, math.ceil(mean)), code_bits, bytes_each, mean)

    def learn(self, vectors: Tensor, weights: Tensor, seed: int) -> Tensor:
        """Codebooks ``[M, 2**b, d]`` for ``vectors [n, d]`` that count by ``weights [n]``."""
        return residual_codebooks(vectors, self.count, 1 << self.code_bits, GREEDY, seed, weights, ROUNDS)

    def plan(self, budget: AdditiveBudget, codebooks: Tensor, vectors: Tensor) -> RatePlan:
        """Column rates around the mean. Raises `UnfitWeightError` when nothing fits."""
        errors = _adjacent_rates(codebooks, vectors, self.mean_rate)
        return budget.plan(errors, vectors.shape[1], self.code_bits, self.bytes_each)


def learn_shared_kmeans(weights: Iterable[Tensor], settings: KMeansSettings, seed: int, bits: float = 3.0) -> Tensor:
    """Codebooks float16 ``[M, 2**b, d]`` for all ``weights`` (``[out, in]`` or ``[out, in, kh, kw]``) of a
    component."""
    vectors = sample_layers(weights, settings.dimension, settings.row_scales, False, seed)
    count, size, _ = shared_kmeans_shape(settings, bits)
    return residual_codebooks(vectors, count, size, GREEDY, seed, None, ROUNDS).half()


def shared_kmeans_shape(settings: KMeansSettings, bits: float) -> tuple[int, int, int]:
    """``[M, 2**b, d]`` of what `learn_shared_kmeans` learns."""
    code_bits = settings.code_bits or SHARED_CODE_BITS
    count = settings.codebooks or max(1, math.ceil(bits * settings.dimension / code_bits))
    return count, 1 << code_bits, settings.dimension


def _adjacent_rates(codebooks: Tensor, vectors: Tensor, mean: float) -> dict[int, float]:
    """Errors of the two rates around the mean: the plain baseline allocates no more than the remainder."""
    least, most = min(len(codebooks), math.floor(mean)), max(0, math.ceil(mean))
    errors = prefix_errors(codebooks, vectors, GREEDY)
    return {rate: error for rate, error in errors.items() if least <= rate <= most}


KMEANS = Quantizer(
    quantize_kmeans,
    KMeansSettings,
    learn_codebooks=learn_shared_kmeans,
    codebook_shape=shared_kmeans_shape,
)
