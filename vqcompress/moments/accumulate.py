"""Sum second moments call by call, in an order that does not depend on who calls: one process, or many that share the batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vqcompress.moments.second_moment import Moments, RecordedSamples, keeps_samples

BLOCK = 512  # columns summed at once: half the product is the other half's mirror image
BUFFERED_ROWS = 256
PART_STRIDE = 0x9E3779B97F4A7C15  # spreads the seeds of a layer's parts


@dataclass
class Part:
    """What one batch added: ``chunks`` of rows ``[n, columns]`` while they are few, or their sum ``upper [columns, columns]``.

    The sum takes the chunks one after another, so it has the same bits whenever it is made. Only blocks on and above the diagonal count.
    """

    columns: int
    rows: int = 0
    used_rows: int = 0
    chunks: list[Tensor] = field(default_factory=list)
    upper: Tensor | None = None

    def add(self, chunk: Tensor) -> None:
        """Add rows ``[n, columns]``, float32."""
        if self.upper is None and keeps_samples(self.columns, self.used_rows):
            self.chunks.append(chunk)
        else:
            self._multiply([*self.chunks, chunk])
            self.chunks = []

    def summed(self) -> Tensor:
        """``upper``, made from the chunks where it was not yet; the part is used up."""
        self._multiply(self.chunks)
        assert self.upper is not None
        upper, self.upper, self.chunks = self.upper, None, []
        return upper

    def is_finite(self) -> bool:
        """Whether all that was added is finite: an infinity or NaN in a row stays on the sum's diagonal."""
        seen = [*self.chunks, *([] if self.upper is None else [self.upper.diagonal()])]
        return all(bool(torch.isfinite(each).all()) for each in seen)

    def _multiply(self, chunks: list[Tensor]) -> None:
        if self.upper is None:
            self.upper = torch.zeros(self.columns, self.columns, device=chunks[0].device if chunks else None)
        for x in chunks:
            for block in blocks(self.columns):
                self.upper[block, block.start :].addmm_(x[:, block].t(), x[:, block.start :])


class MomentAccumulator:
    """Sums ``x xᵀ`` in float32 on the device where ``x`` comes from.

    With ``max_rows_per_call`` a call with more rows contributes that many of them, drawn uniformly without replacement
    from a generator seeded with ``seed`` and the part's number, each weighted by rows / drawn rows: the sum's expectation is
    the full sum. Rows are multiplied `BUFFERED_ROWS` or more at a time, or not at all where they are so few that `RecordedSamples` say the
    same in less memory. `take_part` ends a part, `absorb` adds parts to the total, in the order in which it gets them.
    """

    def __init__(self, columns: int, *, max_rows_per_call: int | None = None, seed: int = 0) -> None:
        self.columns = columns
        self._max_rows, self._seed = max_rows_per_call, seed
        self._pending: list[Tensor] = []
        self._kept: list[Part] = []
        self._total: Tensor | None = None
        self._rows = self._used_rows = 0
        self.start_part(0)

    def start_part(self, number: int) -> None:
        """What is added from here on is part ``number``: its draws depend on that number alone."""
        self._part = Part(self.columns)
        self._generator = torch.Generator().manual_seed((self._seed + number * PART_STRIDE) % (1 << 63))

    def add(self, rows: Tensor) -> None:
        """Add the rows of ``rows [n, columns]``, any float dtype."""
        self.add_from(rows.shape[0], lambda chosen: rows if chosen is None else rows[chosen.to(rows.device)])

    def add_from(self, total: int, rows_at: Callable[[Tensor | None], Tensor]) -> None:
        """Add ``total`` rows, of which ``rows_at`` makes those at the given int64 positions (None: all, in any order)."""
        if total == 0:
            return
        drawn = rows_at(self._draw(total))
        self._pending.append(drawn.float() * (total / drawn.shape[0]) ** 0.5)
        self._part.rows += total
        self._part.used_rows += drawn.shape[0]
        if sum(len(held) for held in self._pending) >= BUFFERED_ROWS:
            self._flush()

    def is_finite(self) -> bool:
        """Whether all that was added to this part so far was finite."""
        self._flush()
        return self._part.is_finite()

    def take_part(self) -> Part:
        """The part so far; a new one of the same number begins."""
        self._flush()
        part, self._part = self._part, Part(self.columns)
        return part

    def absorb(self, part: Part) -> None:
        """Add a part to the total."""
        self._rows, self._used_rows = self._rows + part.rows, self._used_rows + part.used_rows
        self._kept.append(part)
        if self._total is None and part.upper is None and keeps_samples(self.columns, self._used_rows):
            return
        for each in self._kept:
            if each.used_rows:
                upper = each.summed()
                self._total = upper if self._total is None else self._total.add_(upper)
        self._kept = []

    def finish(self) -> Moments | RecordedSamples:
        """The mean over all rows, those of the part under way included. The sum is reused: add nothing afterwards."""
        self.absorb(self.take_part())
        chunks = [chunk for part in self._kept for chunk in part.chunks]
        if chunks:
            return RecordedSamples(torch.cat(chunks).div_(self._rows**0.5), self._rows)
        total = torch.zeros(self.columns, self.columns) if self._total is None else self._total
        self._total = None
        _mirror(total)
        return Moments(total.div_(max(self._rows, 1)), self._rows, self._used_rows)

    def _draw(self, total: int) -> Tensor | None:
        """Positions to use of ``total`` rows; None for all."""
        if self._max_rows is None or total <= self._max_rows:
            return None
        return torch.randperm(total, generator=self._generator)[: self._max_rows]

    def _flush(self) -> None:
        if self._pending:
            self._part.add(torch.cat(self._pending))
            self._pending.clear()


def blocks(columns: int) -> list[slice]:
    """Stretches of columns that are summed, and sent, at once."""
    return [slice(start, min(start + BLOCK, columns)) for start in range(0, columns, BLOCK)]


def _mirror(upper: Tensor) -> None:
    """Copy what is above the diagonal below it, in place."""
    for block in blocks(upper.shape[0]):
        upper[block.stop :, block] = upper[block, block.stop :].t()
        square = upper[block, block]
        square.copy_(square.triu() + square.triu(1).t())
