"""Trellis codes: one bit stream per column, every weight a window of it.

A column of ``outputs`` weights at rate ``k`` is a circular stream of ``outputs * k`` bits. The ``L`` bits that end with
weight ``t``'s own ``k`` bits are its state, and ``weight[t] = scale[t] * table_k[state]``, times the column's scale
where it has one (the bit-shift trellis of QTIP, Tseng et al. 2024, arXiv 2406.11235). The stream is circular
("tail-biting"), so no start state is stored, and any weight decodes from one window. Columns choose their own rate, see
`vqcompress.formats.rates`. The tables are a formula (`vqcompress.formats.trellis_table`), unless the component stores
learned ones for some rates.

At rate ``k + 1/2`` weights add ``k`` and ``k + 1`` bits in turn, and each is looked up in the table of as many bits as
it adds. With rates in half bits, weight ``t`` of any column ends before bit ``(t + 1) * rate >> 1``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from reprlib import repr as short_repr
from typing import ClassVar

import torch
from torch import Tensor

from vqcompress.bitpack import pack, packed_bytes, unpack
from vqcompress.formats.column_scales import COLUMN_SCALES_ON_DISK, column_scales_shape, unpack_column_scales
from vqcompress.formats.field_bounds import check_flag, check_integer, check_number
from vqcompress.formats.outliers import add_outliers, outlier_shapes
from vqcompress.formats.rates import (
    check_rate_fields,
    rate_range,
    rated_content_problem,
    rated_shape_problem,
    rates_shape,
    split_blocks,
    unpack_rates,
)
from vqcompress.formats.rotation import unrotate
from vqcompress.formats.trellis_table import STATE_BITS, max_rate, value_table

MAX_TAIL = 4.0
MAX_ROTATION = 1 << 30


@dataclass(frozen=True)
class TrellisSpec:
    """Static geometry of a trellis-coded weight: all that is not a tensor.

    ``state_bits`` is L; ``rate_bits`` the width of a stored column rate (0: every column has ``min_rate``); ``tail``
    Tukey's h of the value table; ``row_scales`` whether each output has its own scale or all share one; ``code_bytes``
    the length of the packed stream. ``codebook`` names the component's shared tensor with learned tables, one row for
    each rate in ``codebook_rates``; other rates, and all of them by default, have the formula's. ``rotation`` is the
    block of the output rotation (`vqcompress.formats.rotation`) that is undone after the scales, 0 for none. With
    ``column_scales`` every column has a factor of its own (`vqcompress.formats.column_scales`), applied after that;
    ``outliers`` weights are added last (`vqcompress.formats.outliers`). With ``half_rates`` the columns' rates
    (``min_rate`` and what is stored) count half bits a weight. Raises `ValueError` for fields of another type or out of
    range, and for learned tables of rates that the code lacks.
    """

    format: ClassVar[str] = "trellis"
    state_bits: int
    min_rate: int
    rate_bits: int
    tail: float
    row_scales: bool
    code_bytes: int
    codebook: str | None = None
    codebook_rates: tuple[int, ...] = ()
    rotation: int = 0
    column_scales: bool = False
    outliers: int = 0
    half_rates: bool = False

    def __post_init__(self) -> None:
        if type(self.state_bits) is not int or self.state_bits not in STATE_BITS:
            raise ValueError(f"state_bits is {short_repr(self.state_bits)}, none of {', '.join(map(str, STATE_BITS))}")
        check_flag("half_rates", self.half_rates)
        check_rate_fields(self)
        check_number("tail", self.tail, -MAX_TAIL, MAX_TAIL)
        check_integer("rotation", self.rotation, 0, MAX_ROTATION)
        if self.rotation & (self.rotation - 1):
            raise ValueError(f"rotation is {self.rotation}, no power of two")
        self._check_codebook_rates()

    def _check_codebook_rates(self) -> None:
        if not isinstance(self.codebook_rates, list | tuple):
            raise ValueError(f"codebook_rates is {short_repr(self.codebook_rates)}, no list of rates")
        if any(type(rate) is not int or not 1 <= rate <= max_rate(self.state_bits) for rate in self.codebook_rates):
            raise ValueError(f"learned tables for rates {short_repr(tuple(self.codebook_rates))}, which the code lacks")
        if len(set(self.codebook_rates)) < len(self.codebook_rates):
            raise ValueError(f"two learned tables for one rate in {short_repr(self.codebook_rates)}")
        if bool(self.codebook_rates) != (self.codebook is not None):
            raise ValueError("codebook and codebook_rates, of which a code has both or neither")
        object.__setattr__(self, "codebook_rates", tuple(self.codebook_rates))  # JSON has lists

    def tensor_shapes(self, outputs: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape, dtype) of every stored tensor; ``weight`` is the packed stream."""
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "weight": ((1, self.code_bytes), torch.int8),
            "scale": ((outputs if self.row_scales else 1,), torch.float16),
        }
        if self.rate_bits:
            shapes["rates"] = (rates_shape(columns, self.rate_bits), torch.int8)
        if self.column_scales:
            shapes[COLUMN_SCALES_ON_DISK] = (column_scales_shape(columns), torch.int8)
        return shapes | outlier_shapes(self.outliers)

    @property
    def codebook_shape(self) -> tuple[int, int]:
        """Shape of the learned tables, ``[rates, 2**state_bits]``."""
        return len(self.codebook_rates), 1 << self.state_bits

    def table(self, new_bits: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """Values of all states for weights that add ``new_bits``, float32 ``[2**state_bits]``: learned, or the
        formula's."""
        if new_bits in self.codebook_rates:
            return tensors["codebooks"][self.codebook_rates.index(new_bits)].float()
        return value_table(self.state_bits, new_bits, self.tail).to(tensors["weight"].device).float()

    def rates(self, columns: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """The rate of each column as it is stored (see `halves`), int64 ``[columns]``."""
        return unpack_rates(tensors.get("rates"), columns, self.min_rate, self.rate_bits)

    @property
    def largest_rate(self) -> int:
        """The largest rate that the format has, as it is stored."""
        return max_rate(self.state_bits) * (2 if self.half_rates else 1)

    @property
    def rate_range(self) -> range:
        """The rates that columns can have, as they are stored."""
        return rate_range(self.min_rate, self.rate_bits, self.largest_rate)

    def halves(self, rate: int) -> int:
        """A stored rate in half bits a weight."""
        return rate if self.half_rates else 2 * rate

    def column_bits(self, outputs: int, rate: int) -> int:
        """Bits that a column of this rate takes."""
        return outputs * self.halves(rate) >> 1

    def shape_problem(self, outputs: int, columns: int) -> str | None:
        """Why a matrix of these sizes cannot be stored with these fields, or ``None``."""
        if self.rotation and outputs % self.rotation:
            return f"rotation is {self.rotation}, which does not divide {outputs} outputs"
        return rated_shape_problem(self, outputs, columns)

    def content_problem(self, name: str, tensor: Tensor, outputs: int, columns: int) -> str | None:
        """What is wrong with the contents of a stored tensor of the right shape and dtype, or ``None``."""
        return rated_content_problem(self, name, tensor, outputs, columns)

    def decode_transposed(self, outputs: int, columns: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """``Wᵀ [columns, outputs]`` in float32; differentiable in ``scale`` and learned tables."""
        codes = tensors["weight"]
        values = torch.zeros(columns, outputs, dtype=torch.float32, device=codes.device)
        rates = self.rates(columns, tensors)
        for block in split_blocks(codes, rates, lambda rate: packed_bytes(self.column_bits(outputs, rate), 1)):
            if self.column_bits(outputs, block.rate):
                values[block.columns] = self._looked_up(block.codes, self.halves(block.rate), outputs, tensors)
        values = unrotate(values * tensors["scale"].float(), self.rotation)
        if self.column_scales:
            values = values * unpack_column_scales(tensors[COLUMN_SCALES_ON_DISK], columns)[:, None]
        return add_outliers(values, tensors) if self.outliers else values

    def _looked_up(self, codes: Tensor, halves: int, outputs: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """Unscaled values ``[n, outputs]`` of columns ``codes [n, bytes]`` of one rate."""
        states = window_states(unpack_symbols(codes, halves, outputs), halves / 2, self.state_bits)
        if halves % 2 == 0:
            return self.table(halves // 2, tensors)[states]
        tables = torch.stack([self.table(halves // 2 + place, tensors) for place in (0, 1)])
        return tables[torch.arange(outputs, device=codes.device) % 2, states.long()]


def new_bits(rate: float, outputs: int) -> Tensor:
    """Bits that each weight of a column adds at ``rate`` bits a weight, a multiple of 1/2: int32 ``[outputs]``."""
    ends = torch.arange(outputs + 1, dtype=torch.int32) * int(2 * rate) >> 1
    return ends.diff()


def value_tables(state_bits: int, rates: Iterable[float], tail: float) -> dict[int, Tensor]:
    """The formula's tables, float16 by new bits, that columns at ``rates`` bits a weight look up."""
    needed = {bits for rate in set(rates) if rate for bits in new_bits(rate, 2).tolist()}
    return {bits: value_table(state_bits, bits, tail) for bits in sorted(needed)}


def pack_symbols(symbols: Tensor, rate: float) -> Tensor:
    """The new bits ``[n, outputs]`` of the weights of columns at ``rate`` bits a weight -> int8 ``[n, bytes]``."""
    if rate % 1 == 0:
        return pack(symbols, int(rate))
    outputs, pair_bits = symbols.shape[-1], int(2 * rate)
    pairs = torch.nn.functional.pad(symbols.int(), (0, outputs % 2)).unflatten(-1, (-1, 2))
    packed = pack((pairs[..., 0] << (pair_bits + 1) // 2) | pairs[..., 1], pair_bits)
    return packed[..., : (outputs * pair_bits // 2 + 7) // 8].contiguous()


def unpack_symbols(codes: Tensor, halves: int, outputs: int) -> Tensor:
    """The inverse of `pack_symbols` for a rate in half bits, int32 ``[n, outputs]``."""
    if halves % 2 == 0:
        return unpack(codes, halves // 2, outputs)
    pairs = unpack(torch.nn.functional.pad(codes, (0, 2)), halves, (outputs + 1) // 2)  # the last pair may be half
    second = (halves + 1) // 2
    return torch.stack([pairs >> second, pairs & ((1 << second) - 1)], -1).flatten(-2)[..., :outputs]


def window_states(symbols: Tensor, rate: float, state_bits: int) -> Tensor:
    """States ``[..., outputs]`` from the new bits ``[..., outputs]`` of circular streams at ``rate`` bits a weight."""
    widths = new_bits(rate, symbols.shape[-1])
    states, shift, age = torch.zeros_like(symbols), torch.zeros_like(widths), 0
    while int(shift.min()) < state_bits:
        states |= symbols.roll(age, dims=-1) << shift.clamp(max=state_bits).to(symbols.device)
        shift = shift + widths.roll(age)
        age += 1
    return states & ((1 << state_bits) - 1)
