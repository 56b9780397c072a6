"""Second moments of a layer's input: numbers only, no modules and no pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vqcompress.errors import CalibrationError

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
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Moments | RecordedSamples:
        """The inverse of `state_dict`, and of that of `RecordedSamples`."""
        rows, used_rows = state["rows"].tolist()
        return (
            RecordedSamples(state["inputs"], rows)
            if "inputs" in state
            else cls(state["second_moment"], rows, used_rows)
        )


@dataclass(frozen=True)
class RecordedSamples:
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


def keeps_samples(columns: int, rows: int) -> bool:
    """Whether that many rows are kept as they are: where they take at most a quarter of the square's memory, and that is much."""
    return columns >= LEAST_COLUMNS and 4 * rows <= columns
