"""What decoding a weight for one product costs, relative to others. It says which decoded weights are worth keeping."""

from __future__ import annotations

import math

from vqcompress.formats import FormatSpec, TrellisSpec
from vqcompress.kernels.transforms import has_outliers, is_rotated, is_scaled
from vqcompress.matrix_view import Shape

# Nanoseconds on one core of an AMD EPYC with AVX-512, from `python benchmarks/decode_cost.py`.
PER_CALL = 40_000
PER_WEIGHT = 0.8
HALF_RATES = 0.1
TURNED = 0.5  # a filter is turned around
SCALED = 0.1
ROTATION_STEP = 0.25  # for each doubling of the block
PER_OUTLIER = 5.0


def decode_nanoseconds(spec: FormatSpec, shape: Shape) -> float:
    """About how long a CPU takes to decode the weight. Only the order of these numbers means something elsewhere."""
    each = PER_WEIGHT + TURNED * (len(shape) == 4) + SCALED * is_scaled(spec)
    if isinstance(spec, TrellisSpec):
        each += HALF_RATES * spec.half_rates
        each += ROTATION_STEP * spec.rotation.bit_length() * is_rotated(spec)
    return PER_CALL + each * math.prod(shape) + PER_OUTLIER * (spec.outliers if has_outliers(spec) else 0)  # type: ignore[attr-defined]
