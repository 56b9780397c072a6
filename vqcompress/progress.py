"""How long work reports how far it has come."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""``(stage, done, total, detail)``: of a run, which has several stages."""

StageProgress = Callable[[int, int, str], None]
"""``(done, total, detail)``: of one stage."""


class EncodedLayer(str):
    """The detail of a step that encoded a layer: what it came to in words, and the numbers for who adds them up.

    ``bits`` per weight, everything stored counted, and ``error`` relative to the layer's output; both ``None`` where
    the layer stays dense. ``seconds`` of encoding.
    """

    layer: str
    bits: float | None
    error: float | None
    seconds: float

    def __new__(
        cls, layer: str, said: str, bits: float | None = None, error: float | None = None, seconds: float = 0.0
    ) -> EncodedLayer:
        detail = super().__new__(cls, f"{layer}: {said}")
        detail.layer, detail.bits, detail.error, detail.seconds = layer, bits, error, seconds
        return detail


def silent(stage: str, done: int, total: int, detail: str) -> None:
    """A `Progress` that reports to nobody."""


def silent_stage(done: int, total: int, detail: str) -> None:
    """A `StageProgress` that reports to nobody."""
