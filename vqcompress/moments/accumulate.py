"""Sum second moments call by call, in an order that does not depend on who calls: one process, or many that share the
batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vqcompress.moments.second_moment import SecondMoment, keeps_samples

BLOCK = 512  # columns summed at once: half the product is the other half's mirror image
BUFFERED_SAMPLES = 256
PART_STRIDE = 0x9E3779B97F4A7C15  # spreads the seeds of a layer's parts

Header = tuple[int, int, list[int], bool]
"""What a receiver must know of a `PartialSum`: samples seen, samples used, samples of each chunk, whether it is a
square."""


@dataclass
class PartialSum:
    """What one batch adds to ``Σ x xᵀ``, with the two storages of `SecondMoment`.

    ``samples`` are chunks ``[n, columns]`` while they are few; then ``upper [columns, columns]`` is their sum, of which
    only blocks on and above the diagonal count. The sum takes the chunks one after another, so it has the same bits
    whenever it is made. ``home`` is where ``upper`` lies, by default the chunks' device: a square that has no room
    there is multiplied there block by block and summed on the host.
    """

    columns: int
    seen: int = 0
    used: int = 0
    samples: list[Tensor] = field(default_factory=list)
    upper: Tensor | None = None
    home: torch.device | None = None

    def add(self, chunk: Tensor) -> None:
        """Add samples ``[n, columns]``, float32."""
        if self.upper is None and keeps_samples(self.columns, self.used):
            self.samples.append(chunk)
        else:
            self._multiply([*self.samples, chunk])
            self.samples = []

    def take_upper(self) -> Tensor:
        """``upper``, made from the chunks where it was not yet; empties the sum."""
        self._multiply(self.samples)
        assert self.upper is not None
        upper, self.upper, self.samples = self.upper, None, []
        return upper

    def is_finite(self) -> bool:
        """Whether all that was added is finite: an infinity or NaN in a sample stays on the sum's diagonal."""
        stored = [*self.samples, *([] if self.upper is None else [self.upper.diagonal()])]
        return all(bool(torch.isfinite(each).all()) for each in stored)

    def header(self) -> Header:
        """What `receive` needs to know in advance."""
        return self.seen, self.used, [len(chunk) for chunk in self.samples], self.upper is not None

    def tensors(self) -> Iterator[Tensor]:
        """What is to be sent, in the order in which `receive` asks for it."""
        yield from self.samples
        if self.upper is not None:
            for block in _blocks(self.columns):
                yield self.upper[block, block.start :]

    @classmethod
    def receive(cls, columns: int, header: Header, receive: Callable[[int, int], Tensor]) -> PartialSum:
        """The sum of another process; ``receive`` takes a height and a width and returns the next of its `tensors`."""
        seen, used, lengths, is_square = header
        samples = [receive(length, columns) for length in lengths]
        if not is_square:
            return cls(columns, seen, used, samples)
        upper: Tensor | None = None
        for block in _blocks(columns):
            strip = receive(block.stop - block.start, columns - block.start)
            upper = torch.zeros(columns, columns, device=strip.device) if upper is None else upper
            upper[block, block.start :] = strip
        return cls(columns, seen, used, samples, upper)

    def _multiply(self, chunks: list[Tensor]) -> None:
        if self.upper is None:
            home = self.home or (chunks[0].device if chunks else None)
            self.upper = torch.zeros(self.columns, self.columns, device=home)
        for x in chunks:
            for block in _blocks(self.columns):
                strip = self.upper[block, block.start :]
                if x.device == strip.device:
                    strip.addmm_(x[:, block].t(), x[:, block.start :])
                else:
                    strip.add_((x[:, block].t() @ x[:, block.start :]).to(strip.device))


@dataclass
class _Total:
    """The sum of parts: their samples while these are few, then ``upper [columns, columns]`` as in `PartialSum`."""

    columns: int
    seen: int = 0
    used: int = 0
    kept: list[PartialSum] = field(default_factory=list)
    upper: Tensor | None = None

    def absorb(self, part: PartialSum) -> None:
        self.seen, self.used = self.seen + part.seen, self.used + part.used
        self.kept.append(part)
        if self.upper is None and part.upper is None and keeps_samples(self.columns, self.used):
            return
        for each in self.kept:
            if each.used:
                upper = each.take_upper()
                self.upper = upper if self.upper is None else self.upper.add_(upper)
        self.kept = []

    def finish(self) -> SecondMoment:
        chunks = [chunk for part in self.kept for chunk in part.samples]
        if chunks:
            samples = torch.cat(chunks).div_(self.seen**0.5)
            return SecondMoment(samples=samples, seen=self.seen, used=len(samples))
        total = torch.zeros(self.columns, self.columns) if self.upper is None else self.upper
        self.upper = None
        _mirror(total)
        return SecondMoment(total.div_(max(self.seen, 1)), seen=self.seen, used=self.used)


class MomentAccumulator:
    """Sums ``x xᵀ`` in float32 on the device where ``x`` comes from.

    With ``max_samples_per_call`` a call with more samples contributes that many of them, drawn uniformly without
    replacement from a generator seeded with ``seed`` and the part's number, each weighted by samples / drawn samples:
    the sum's expectation is the full sum. Samples are multiplied `BUFFERED_SAMPLES` or more at a time, or not at all
    where they are so few that they take less memory than their square. `take_part` ends a part, `absorb` adds parts to
    the total, in the order in which it gets them; with ``folds`` the i-th part to that of fold ``i % folds``. Sums lie
    at ``home``, as in `PartialSum`.
    """

    def __init__(
        self,
        columns: int,
        *,
        max_samples_per_call: int | None = None,
        seed: int = 0,
        home: torch.device | None = None,
        folds: int = 1,
    ) -> None:
        self.columns, self.home = columns, home
        self._max_samples, self._seed = max_samples_per_call, seed
        self._pending: list[Tensor] = []
        self._totals = [_Total(columns) for _ in range(folds)]
        self._absorbed = 0
        self.start_part(0)

    def start_part(self, number: int) -> None:
        """What is added from here on is part ``number``: its draws depend on that number alone."""
        self._part = PartialSum(self.columns, home=self.home)
        self._generator = torch.Generator().manual_seed((self._seed + number * PART_STRIDE) % (1 << 63))

    def add(self, samples: Tensor) -> None:
        """Add ``samples [n, columns]``, any float dtype."""
        self.add_from(
            samples.shape[0], lambda chosen: samples if chosen is None else samples[chosen.to(samples.device)]
        )

    def add_from(self, total: int, samples_at: Callable[[Tensor | None], Tensor]) -> None:
        """Add ``total`` samples; ``samples_at`` makes those at the given int64 positions (None: all, in any order)."""
        if total == 0:
            return
        drawn = samples_at(self._draw(total))
        self._pending.append(drawn.float() * (total / drawn.shape[0]) ** 0.5)
        self._part.seen += total
        self._part.used += drawn.shape[0]
        if sum(len(held) for held in self._pending) >= BUFFERED_SAMPLES:
            self._flush()

    def is_finite(self) -> bool:
        """Whether all that was added to this part so far was finite."""
        self._flush()
        return self._part.is_finite()

    def take_part(self) -> PartialSum:
        """The part so far; a new one of the same number begins."""
        self._flush()
        part, self._part = self._part, PartialSum(self.columns, home=self.home)
        return part

    def absorb(self, part: PartialSum) -> None:
        """Add a part to the total of its fold."""
        self._totals[self._absorbed % len(self._totals)].absorb(part)
        self._absorbed += 1

    def finish(self) -> SecondMoment:
        """The mean over all samples, the part under way included. The sums are reused: add nothing afterwards."""
        self.absorb(self.take_part())
        return SecondMoment.of_folds([total.finish() for total in self._totals])

    def _draw(self, total: int) -> Tensor | None:
        """Positions to use of ``total`` samples; None for all."""
        if self._max_samples is None or total <= self._max_samples:
            return None
        return torch.randperm(total, generator=self._generator)[: self._max_samples]

    def _flush(self) -> None:
        if self._pending:
            self._part.add(torch.cat(self._pending))
            self._pending.clear()


def _blocks(columns: int) -> list[slice]:
    """Stretches of columns that are summed, and sent, at once."""
    return [slice(start, min(start + BLOCK, columns)) for start in range(0, columns, BLOCK)]


def _mirror(upper: Tensor) -> None:
    """Copy what is above the diagonal below it, in place."""
    for block in _blocks(upper.shape[0]):
        upper[block.stop :, block] = upper[block, block.stop :].t()
        square = upper[block, block]
        square.copy_(square.triu() + square.triu(1).t())
