"""What an order of columns that fits the rates saves: layers of correlated inputs, encoded with it and without.

``python benchmarks/column_order.py`` prints a Markdown table: the error with it relative to that without, and what both
spend above the rate-distortion bound, in bits a weight. The layers are those that `layer_error` makes from a seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
import torch

from layer_error import Layer, make_layers, ours, second_moment
from vqcompress.moments.rate_distortion import gap_in_bits
from vqcompress.quantizers import TrellisSettings
from vqcompress.quantizers.error_feedback import FeedbackPlanner
from vqcompress.quantizers.layer_error import relative_error

HEADER = "| layer | method | bits | error, relative to none | gap, bits | without |\n|---|---|---|---|---|---|"


@click.command()
@click.option("--bits", default="2,3,4", show_default=True, help="Bit budgets, comma-separated.")
@click.option("--seed", default=0, show_default=True)
def main(bits: str, seed: int) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    settings = {
        "trellis": TrellisSettings(),
        "trellis, whole bits": TrellisSettings(half_rates=False),
        "additive": None,
    }
    print(HEADER)
    for layer in make_layers(seed)[1:]:
        for name, own in settings.items():
            for budget in map(float, bits.split(",")):
                fitted, plain = (errors(layer, name.split(",")[0], budget, seed, own, fit) for fit in (True, False))
                ratio, gaps = fitted[0] / plain[0], [f"{gap:.3f}" for _, gap in (fitted, plain)]
                print(f"| {layer.name} | {name} | {budget:g} | {ratio:.3f} | {gaps[0]} | {gaps[1]} |", flush=True)


def errors(
    layer: Layer, method: str, bits: float, seed: int, settings: object | None, fit: bool
) -> tuple[float, float]:
    """Relative output error, and the gap to the bound."""
    moment = second_moment(layer.inputs)
    with fitting(fit):
        decoded, stored = ours(method, bits, seed, settings)(layer.weight, moment)
    error = relative_error(layer.weight, decoded, moment)
    return error, gap_in_bits(layer.spectrum, stored, error)


@contextmanager
def fitting(fit: bool) -> Iterator[None]:
    """With the order of falling H_jj where not to ``fit``."""
    known = FeedbackPlanner.in_fitted_order
    if not fit:
        FeedbackPlanner.in_fitted_order = lambda self, *rest: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        FeedbackPlanner.in_fitted_order = known  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
