"""What became of each layer, as a table beside the weights: its bits, its error, and what it was learned from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vqcompress.folder_files import StrPath

LAYERS_NAME = "vqcompress_layers.json"


@dataclass(frozen=True)
class LayerRecord:
    """One layer that the recipe asked to compress.

    ``bits`` are those stored with it, a weight; ``error`` the squared error of its outputs relative to the outputs, on
    calibration inputs; ``importance`` how much of that moves the denoiser's output (``None`` where nobody asked);
    ``rows`` the calibration inputs it was learned from (``None``: none were needed), ``columns`` the inputs' width;
    ``outliers`` how many weights are stored beside its codes; ``gap`` the bits a weight above what the
    rate-distortion bound of Gaussian weights asks for that error (``None`` where it is not known).
    """

    component: str
    layer: str
    format: str
    bits: float
    error: float
    importance: float | None
    rows: int | None
    columns: int
    outliers: int = 0
    gap: float | None = None

    @property
    def is_undersampled(self) -> bool:
        """Whether it saw fewer inputs than it has columns.

        Its second moment then borrows from the same layer of other experts, or from white noise.
        """
        return self.rows is not None and self.rows < self.columns


def write_layer_table(folder: Path, records: Sequence[LayerRecord]) -> None:
    """Write ``records`` to ``folder`` as JSON, a layer a line."""
    lines = ",\n ".join(json.dumps(asdict(record)) for record in records)
    (folder / LAYERS_NAME).write_text(f"[{lines}]\n", encoding="utf-8")


def read_layer_table(folder: StrPath) -> list[LayerRecord]:
    """The records in ``folder``; none where it was written by other means than `vqcompress.quantize`."""
    path = Path(folder) / LAYERS_NAME
    return [LayerRecord(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []
