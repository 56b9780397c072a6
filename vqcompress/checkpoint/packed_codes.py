"""Can a stream of codes be what its spec says? Checked from rates and lengths, without decoding."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vqcompress.bitpack import packed_bytes
from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec
from vqcompress.formats.trellis_table import max_rate
from vqcompress.matrix_view import matrix_shape


def code_problem(spec: FormatSpec, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the column rates of a packed weight, or ``None``; ``tensors`` need only hold ``rates``."""
    if isinstance(spec, ScalarSpec):
        return None
    rows, columns = matrix_shape(shape)
    rates = spec.rates(columns, tensors)
    largest = spec.codebooks if isinstance(spec, AdditiveSpec) else max_rate(spec.state_bits)
    if int(rates.max()) > largest:
        return f"a column has rate {int(rates.max())}, the format ends at {largest}"
    needed = sum(_column_bytes(spec, rows, rate) * int((rates == rate).sum()) for rate in rates.unique().tolist())
    return (
        None if needed == spec.code_bytes else f"its rates need {needed} bytes of codes, {spec.code_bytes} are stored"
    )


def _column_bytes(spec: FormatSpec, rows: int, rate: int) -> int:
    if isinstance(spec, AdditiveSpec):
        return packed_bytes(spec.vectors(rows) * rate, spec.code_bits)
    return packed_bytes(rows, rate)
