"""What decoding a weight for one product costs, relative to others. It says which decoded weights are worth keeping."""

from __future__ import annotations

import math

from vqcompress.formats import FormatSpec
from vqcompress.kernels.transforms import is_rotated, is_scaled
from vqcompress.matrix_view import Shape

# Nanoseconds on one core of an AMD EPYC with AVX-512, from `OMP_NUM_THREADS=1 python benchmarks/decode_cost.py`.
PER_CALL = 21_000
PER_WEIGHT = {"trellis": 0.56, "additive": 0.43, "scalar": 0.15}
TURNED = 0.38  # a filter is turned around
SCALED = 0.3
ROTATED = 0.45


def decode_nanoseconds(spec: FormatSpec, shape: Shape) -> float:
    """About how long a CPU takes to decode the weight. Only the order of these numbers means something elsewhere."""
    each = PER_WEIGHT.get(spec.format, 1.0) + TURNED * (len(shape) == 4)
    each += SCALED * is_scaled(spec) + ROTATED * is_rotated(spec)
    return PER_CALL + each * math.prod(shape)
