"""Second moments of a layer's input: numbers only, no modules and no pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vqcompress.errors import CalibrationError

BLOCK = 512  # columns summed at once: half the product is the other half's mirror image
BUFFERED_ROWS = 256
LEAST_COLUMNS = 1024  # smaller squares take little memory and time, whatever the rows


@dataclass(frozen=True)
class Moments:
    """``second_moment = E[x xᵀ]``, float32 ``[columns, columns]`` in the column order of `matrix_view`.

    ``rows`` is how many input rows it stands for; 0 means the layer never ran, and the matrix is zero.
    ``used_rows`` is how many of them were multiplied, fewer when calls were subsampled; its rank is at most that.
    """

    second_moment: Tensor
    rows: int
    used_rows: int

    @property
    def columns(self) -> int:
        """Width of the layer's input as a matrix."""
        return self.second_moment.shape[0]

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of rows together, on this one's device."""
        if self.columns != other.columns:
            raise CalibrationError(f"moments of {self.columns} and {other.columns} columns belong to different layers")
        rows = self.rows + other.rows
        share = other.rows / rows if rows else 0.0
        both = torch.lerp(self.second_moment, other.second_moment.to(self.second_moment), share)
        return Moments(both, rows, self.used_rows + other.used_rows)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for a safetensors file."""
        counts = torch.tensor([self.rows, self.used_rows], dtype=torch.int64)
        return {"second_moment": self.second_moment, "rows": counts}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Moments | RecordedRows:
        """The inverse of `state_dict`, and of that of `RecordedRows`."""
        rows, used_rows = state["rows"].tolist()
        return (
            RecordedRows(state["inputs"], rows) if "inputs" in state else cls(state["second_moment"], rows, used_rows)
        )


@dataclass(frozen=True)
class RecordedRows:
    """Moments of a layer that saw so few rows that they are kept instead: ``inputs [used rows, columns]``, float32, ``rows`` in all.

    ``inputsᵀ inputs`` is the second moment; the square is made only where something asks for it.
    """

    inputs: Tensor
    rows: int

    @property
    def used_rows(self) -> int:
        """How many of the rows there are."""
        return len(self.inputs)

    @property
    def columns(self) -> int:
        """Width of the layer's input as a matrix."""
        return self.inputs.shape[1]

    @property
    def second_moment(self) -> Tensor:
        """``E[x xᵀ]``, float32 ``[columns, columns]``."""
        return self.inputs.t() @ self.inputs

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for a safetensors file."""
        return {"inputs": self.inputs, "rows": torch.tensor([self.rows, self.used_rows], dtype=torch.int64)}


def keeps_rows(columns: int, rows: int) -> bool:
    """Whether that many rows are kept as they are: where they take at most a quarter of the square's memory, and that is much."""
    return columns >= LEAST_COLUMNS and 4 * rows <= columns


class MomentAccumulator:
    """Sums ``x xᵀ`` in float32 on the device where ``x`` comes from, in one ``[columns, columns]`` matrix.

    With ``max_rows_per_call`` a call with more rows contributes that many of them, drawn uniformly without replacement
    from a generator seeded with ``seed``, each weighted by rows / drawn rows: the sum's expectation is the full sum.
    Fewer than `BUFFERED_ROWS` rows are held back until there are enough for an efficient product, and all of them where they
    are so few that `RecordedRows` say the same in less memory.
    """

    def __init__(self, columns: int, *, max_rows_per_call: int | None = None, seed: int = 0) -> None:
        self.columns = columns
        self.rows = 0
        self.used_rows = 0
        self._max_rows = max_rows_per_call
        self._generator = torch.Generator().manual_seed(seed)
        self._pending: list[Tensor] = []
        self._upper: Tensor | None = None  # only the blocks on and above the diagonal are summed

    def add(self, rows: Tensor) -> None:
        """Add the rows of ``rows [n, columns]``, any float dtype."""
        self.add_from(rows.shape[0], lambda chosen: rows if chosen is None else rows[chosen.to(rows.device)])

    def add_from(self, total: int, rows_at: Callable[[Tensor | None], Tensor]) -> None:
        """Add ``total`` rows, of which ``rows_at`` makes those at the given int64 positions (None: all, in any order)."""
        if total == 0:
            return
        drawn = rows_at(self._draw(total))
        self._pending.append(drawn.float() * (total / drawn.shape[0]) ** 0.5)
        self.rows += total
        self.used_rows += drawn.shape[0]
        if not self._keeps_rows() and sum(len(held) for held in self._pending) >= BUFFERED_ROWS:
            self._multiply()

    def is_finite(self) -> bool:
        """Whether all that was added so far was finite: an infinity or NaN in a row stays on the diagonal."""
        if self._keeps_rows():
            return all(bool(torch.isfinite(held).all()) for held in self._pending)
        self._multiply()
        return self._upper is None or bool(torch.isfinite(self._upper.diagonal()).all())

    def finish(self) -> Moments | RecordedRows:
        """The mean over all rows. The sum is reused, so that only one matrix exists: add nothing afterwards."""
        if self._pending and self._keeps_rows():
            return RecordedRows(torch.cat(self._pending).div_(self.rows**0.5), self.rows)
        self._multiply()
        total = self._upper if self._upper is not None else torch.zeros(self.columns, self.columns)
        self._upper = None
        _mirror(total)
        return Moments(total.div_(max(self.rows, 1)), self.rows, self.used_rows)

    def _keeps_rows(self) -> bool:
        return self._upper is None and keeps_rows(self.columns, self.used_rows)

    def _draw(self, total: int) -> Tensor | None:
        """Positions to use of ``total`` rows; None for all."""
        if self._max_rows is None or total <= self._max_rows:
            return None
        return torch.randperm(total, generator=self._generator)[: self._max_rows]

    def _multiply(self) -> None:
        if not self._pending:
            return
        x = torch.cat(self._pending)
        self._pending.clear()
        if self._upper is None:
            self._upper = torch.zeros(self.columns, self.columns, device=x.device)
        for block in _blocks(self.columns):
            self._upper[block, block.start :].addmm_(x[:, block].t(), x[:, block.start :])


def _blocks(columns: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, columns)) for start in range(0, columns, BLOCK)]


def _mirror(upper: Tensor) -> None:
    """Copy what is above the diagonal below it, in place."""
    for block in _blocks(upper.shape[0]):
        upper[block.stop :, block] = upper[block, block.stop :].t()
        square = upper[block, block]
        square.copy_(square.triu() + square.triu(1).t())
