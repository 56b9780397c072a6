"""Residual k-means: the plain vector quantizer of the field, a baseline.

Codebooks one after another by k-means on what the ones before leave over (faiss), vectors weighted by the power of
their input, codes chosen greedily, no error feedback. Stored in the same format as `vqcompress.quantizers.additive`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.additive_columns import AdditiveColumns
from vqcompress.quantizers.codebooks import prefix_errors, residual_codebooks
from vqcompress.quantizers.column_rates import AdditiveBudget
from vqcompress.quantizers.outliers import NO_OUTLIERS, input_outliers
from vqcompress.quantizers.quantizer import Quantizer
from vqcompress.quantizers.scales import Auto, choose_scale
from vqcompress.quantizers.weight_vectors import COMPONENT_CODEBOOK, check_geometry, sample_layers, sample_vectors

SAMPLE = 65536  # vectors that k-means sees: 256 a centroid of the usual codebook
GREEDY = 1  # beam
ROUNDS = 40  # of k-means a codebook; nothing refines them later


@dataclass(frozen=True)
class KMeansSettings:
    """``dimension`` (4, 8, 16): outputs a vector; ``code_bits`` (4 to 12): bits a code; ``codebooks``: how many,
    ``None`` derives it from ``bits``; ``row_scales``: a scale for each output, or one for all, ``"auto"`` decides by
    what their spread costs; ``outliers``: whether few weights beyond the code's range are stored beside it.
    """

    dimension: int = 8
    code_bits: int = 8
    codebooks: int | None = None
    row_scales: bool | Auto = "auto"
    outliers: bool = True

    def __post_init__(self) -> None:
        check_geometry("kmeans", self.dimension, self.code_bits, self.codebooks, self.row_scales)


def quantize_kmeans(
    weight: Tensor,
    second_moment: SecondMoment | None,
    settings: KMeansSettings,
    bits: float,
    seed: int,
    shared_codebooks: Tensor | None = None,
) -> tuple[AdditiveSpec, dict[str, Tensor]]:
    """Encode ``weight [out, columns]`` (float32, finite) in at most ``bits`` bits a weight of codes, scales and rates.

    Of ``second_moment`` only the diagonal is used. Where ``bits * dimension / code_bits`` is no whole number
    of codes, columns of more power get one code more than others. A layer's own codebooks come on top of ``bits``;
    ``shared_codebooks [M, 2**b, d]`` fix the geometry and are not stored. Raises `RecipeError` when no code fits.
    """
    home, weight = weight.device, weight.cpu()
    outliers = input_outliers(weight, second_moment, bits) if settings.outliers else NO_OUTLIERS
    weight, bits = outliers.removed_from(weight), bits - outliers.bits_per_weight(weight)
    if second_moment is None:
        power = torch.ones(weight.shape[1])
    else:
        power = second_moment.as_square().diagonal().double().cpu().clamp(min=0)
    scale, per_output = choose_scale(weight, settings.row_scales)
    dimension = settings.dimension if shared_codebooks is None else shared_codebooks.shape[2]
    vectors, columns = sample_vectors(weight, scale, dimension, SAMPLE, seed)
    if shared_codebooks is None:
        codebooks = _learn(vectors, power[columns].float(), settings, bits, seed)
    else:
        codebooks = shared_codebooks.cpu().float()
    budget = AdditiveBudget(len(weight), power, bits, row_scales=per_output)
    plan = budget.plan(_adjacent_rates(codebooks, vectors, bits), dimension, (codebooks.shape[1] - 1).bit_length())
    if shared_codebooks is None:
        codebooks = codebooks[: int(plan.rates.max())]
    coded = AdditiveColumns(weight, scale, per_output, codebooks, plan, GREEDY)
    coded.sweep(None)
    spec, tensors = coded.packed(None if shared_codebooks is None else COMPONENT_CODEBOOK)
    spec, tensors = replace(spec, outliers=len(outliers)), tensors | outliers.tensors()
    return spec, {name: tensor.to(home) for name, tensor in tensors.items()}


def learn_shared_kmeans(weights: Iterable[Tensor], settings: KMeansSettings, seed: int, bits: float = 3.0) -> Tensor:
    """Codebooks float16 ``[M, 2**b, d]`` for all ``weights`` (``[out, in]`` or ``[out, in, kh, kw]``) of a
    component."""
    vectors = sample_layers(weights, settings.dimension, settings.row_scales, False, seed)
    return _learn(vectors, None, settings, bits, seed).half()


def shared_kmeans_shape(settings: KMeansSettings, bits: float) -> tuple[int, int, int]:
    """``[M, 2**b, d]`` of what `learn_shared_kmeans` learns."""
    count = settings.codebooks or max(1, math.ceil(bits * settings.dimension / settings.code_bits))
    return count, 1 << settings.code_bits, settings.dimension


def _learn(vectors: Tensor, weights: Tensor | None, settings: KMeansSettings, bits: float, seed: int) -> Tensor:
    count, size, _ = shared_kmeans_shape(settings, bits)
    return residual_codebooks(vectors, count, size, GREEDY, seed, weights, ROUNDS)


def _adjacent_rates(codebooks: Tensor, vectors: Tensor, bits: float) -> dict[int, float]:
    """Errors of the two rates around the mean: the plain baseline allocates no more than the remainder."""
    count, size, dimension = codebooks.shape
    mean = bits * dimension / (size - 1).bit_length()
    errors = prefix_errors(codebooks, vectors, GREEDY)
    return {rate: error for rate, error in errors.items() if min(count, math.floor(mean)) <= rate <= math.ceil(mean)}


KMEANS = Quantizer(
    quantize_kmeans,
    KMeansSettings,
    learn_codebooks=learn_shared_kmeans,
    codebook_shape=shared_kmeans_shape,
)
