"""The scalar code of a weight where it is better than the vector code in no more bytes.

Vector codes are built for weights that look random. Weights that lie on few levels (constant outputs, signs, a layer
that was quantized before) are a scalar grid's: it can hit them exactly. The comparison is skipped where a grid has no
chance: error feedback gains both codes alike, so a grid that fits the weights much worse than a vector code of these
bits fits random ones loses under feedback too.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vqcompress.formats import FormatSpec, ScalarSpec
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.gptq import GPTQSettings, quantize_gptq
from vqcompress.quantizers.layer_error import output_power
from vqcompress.quantizers.scalar_grid import SCALAR_BITS, search_grid, stored_bits

GROUP_SIZES = (32, 64, 128)
NO_CHANCE = 4.0  # times the error of an ideal code for Gaussian weights, 4^-bits

Packed = tuple[FormatSpec, dict[str, Tensor]]


def better_of(vector: Packed, weight: Tensor, second_moment: SecondMoment | None, bits: float) -> Packed:
    """``vector``, or a scalar code of ``weight [out, columns]`` in at most ``bits`` bits a weight with less error.

    Error is ``tr(E H Eᵀ)`` with the second moment H, ``None`` for the identity.
    """
    outputs, inputs = weight.shape
    spec = largest_scalar_spec(outputs, inputs, bits)
    if spec is None:
        return vector
    lost = _error(vector, weight, second_moment)
    columns = weight.t().float()
    grid = search_grid(columns, spec, columns.new_ones(len(columns)))
    rounded = grid.rounded(columns).t()
    hopeless = (weight - rounded).square().sum() > NO_CHANCE * 4.0**-bits * weight.square().sum()
    if hopeless and lost < output_power(weight - rounded, second_moment):
        return vector
    scalar = quantize_gptq(
        weight, second_moment, GPTQSettings(spec.group_size, spec.scale_bits, 1e-3), spec.bits, seed=0
    )
    return scalar if _error(scalar, weight, second_moment) < lost else vector


def largest_scalar_spec(outputs: int, columns: int, bits: float) -> ScalarSpec | None:
    """The scalar code of most bits a code, then of the smallest groups, within ``bits`` bits a weight; ``None`` if none
    fits."""
    for width in sorted(SCALAR_BITS, reverse=True):
        for group_size in GROUP_SIZES:
            spec = ScalarSpec(width, group_size)
            if stored_bits(spec, outputs, columns) <= bits:
                return spec
    return None


def _error(
    packed: tuple[FormatSpec, Mapping[str, Tensor]], weight: Tensor, second_moment: SecondMoment | None
) -> float:
    spec, tensors = packed
    outputs, columns = weight.shape
    return output_power(weight - spec.decode_transposed(outputs, columns, tensors).t(), second_moment)
