"""The vectors of a weight, neighbouring outputs of one column: the sizes that the additive format stores, and samples
of them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from vqcompress.errors import RecipeError
from vqcompress.formats.column_scales import column_scale_factors
from vqcompress.matrix_view import to_matrix
from vqcompress.quantizers.scales import Auto, choose_column_scales, choose_scale, divide_by_scale
from vqcompress.quantizers.setting_values import check_setting

DIMENSIONS = (4, 8, 16)
CODE_BITS = range(4, 13)
MAX_CODEBOOKS = 32
COMPONENT_CODEBOOK = "codebooks"  # the name, in layers' specs, of the codebooks that a component shares
# Share of a sample for the vectors of largest norm: 3 % less error on Gaussian weights, a quarter less on heavy tails.
EXTREMES = 1 / 16
CODE_LOSS = {8: 0.0, 6: 0.05, 4: 0.12}  # bits a weight at the same error: Gaussian weights, vectors of 8
LAYER_SAMPLE = 4096  # vectors that one of many layers gives at most
SHARED_SAMPLE = 65536


def check_geometry(method: str, dimension: int, code_bits: int | None, codebooks: int | None) -> None:
    """Raises `RecipeError` unless these are sizes that the additive format stores and the searches take."""
    check_setting(method, "dimension", dimension, dimension in DIMENSIONS, "4, 8 or 16")
    check_setting(method, "code_bits", code_bits, code_bits is None or code_bits in CODE_BITS, "4 to 12, or null")
    fine = codebooks is None or codebooks in range(1, MAX_CODEBOOKS + 1)
    check_setting(method, "codebooks", codebooks, fine, f"1 to {MAX_CODEBOOKS}, or null")


def own_code_bits(weights: int, dimension: int, bits: float, flat: bool, counted: bool) -> int:
    """Bits a code for a layer of ``weights`` weights with codebooks of its own, of which ``bits`` pays if ``counted``.

    Larger codebooks code better, but cost more to store and make column rates coarser, which matters where columns are
    not alike (``flat``).
    """
    largest = 0.085 if flat else 0.03  # of a bit a weight, for one codebook
    usable = [size for size in CODE_LOSS if (16 * dimension << size) <= largest * weights] or [min(CODE_LOSS)]
    if not counted:
        return max(usable)
    stored = {size: math.ceil(bits * dimension / size) * (16 * dimension << size) / weights for size in usable}
    return min(usable, key=lambda size: CODE_LOSS[size] + stored[size])


def sample_vectors(weight: Tensor, scale: Tensor, dimension: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most ``count`` vectors ``[n, d]`` of the scaled ``weight [out, columns]`` and their columns, int64 ``[n]``.

    A random sample, of which a share is given to the vectors of largest norm: codebooks that never saw the outliers of
    a heavy-tailed weight miss them by so much that a hundred vectors make a fifth of the error.
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
    weights: Iterable[Tensor], dimension: int, row_scales: bool | Auto, column_scales: bool | Auto, seed: int
) -> Tensor:
    """Scaled vectors ``[n, d]`` of many weights (``[out, in]`` or ``[out, in, kh, kw]``); large ones give more, up to a
    limit.

    Raises `RecipeError` when there is no weight at all.
    """
    parts = []
    for index, weight in enumerate(weights):
        matrix = to_matrix(weight).detach().float().cpu()
        codes = choose_column_scales(matrix, column_scales)
        matrix = matrix if codes is None else matrix / column_scale_factors(codes)
        scale, _ = choose_scale(matrix, row_scales)
        parts.append(sample_vectors(matrix, scale, dimension, LAYER_SAMPLE, seed + index)[0])
    if not parts:
        raise RecipeError("no weights to learn shared codebooks from: the component has no layer to quantize")
    vectors = torch.cat(parts)
    return vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:SHARED_SAMPLE]]
