"""A layer that others trained: one weight of 175 standard deviations meets the strongest input (fixtures/README.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vqcompress.formats import ScalarSpec
from vqcompress.quantizers import GPTQSettings, TrellisSettings, quantize_weight
from vqcompress.quantizers.layer_error import relative_error

FIXTURE = Path(__file__).parent / "fixtures" / "minilm_layer0_output.safetensors"


@pytest.fixture(scope="module")
def layer() -> tuple[Tensor, Tensor]:
    """Weight ``[128, 1536]`` and second moment."""
    stored = load_file(FIXTURE)
    columns = stored["weight"].shape[1]
    factor = torch.zeros(columns, columns)
    factor[tuple(torch.tril_indices(columns, columns))] = stored["cholesky_lower"].float()
    return stored["weight"].float(), factor @ factor.t()


def channel_errors(weight: Tensor, decoded: Tensor, moment: Tensor) -> Tensor:
    """Relative error of each output."""
    lost = weight - decoded
    return ((lost @ moment) * lost).sum(1) / ((weight @ moment) * weight).sum(1)


# The codebooks of the additive code take a tenth of its bits here.
@pytest.mark.parametrize(
    ("method", "bits", "left"),
    [("trellis", 2.0, 0.75), ("trellis", 3.0, 0.75), ("trellis", 4.0, 0.75), ("additive", 3.0, 0.85)],
)
def test_a_vector_code_is_ahead_of_gptq_in_the_sum_and_in_the_worst_output(layer, method, bits, left):
    weight, moment = layer
    packed = quantize_weight(weight, moment, method=method, bits=bits)
    published = GPTQSettings(group_size=64, scale_bits=16, damping=1e-3, zero_forcing=True)
    gptq, best = (
        quantize_weight(weight, moment, method="gptq", bits=bits, settings=settings)
        for settings in (published, GPTQSettings())
    )
    assert packed.bits_per_weight < gptq.bits_per_weight
    ours, theirs = packed.decode(), gptq.decode()
    assert relative_error(weight, ours, moment) < left * relative_error(weight, theirs, moment)
    assert relative_error(weight, ours, moment) < relative_error(weight, best.decode(), moment)
    assert channel_errors(weight, ours, moment).max() < channel_errors(weight, theirs, moment).max()


def test_without_outliers_a_scalar_code_or_a_heavy_tail_has_to_save_the_layer(layer):
    weight, moment = layer
    kept = quantize_weight(weight, moment, bits=3.0)
    assert 0 < kept.outliers < 100
    error = relative_error(weight, kept.decode(), moment)
    for tail, least in (("auto", 1.3), (0.0, 5.0)):
        settings = TrellisSettings(outliers=False, coordinate_descent=0, tail=tail, rotation=False)
        saved = quantize_weight(weight, moment, bits=3.0, settings=settings)
        assert isinstance(saved.spec, ScalarSpec) == (tail == 0.0)
        assert relative_error(weight, saved.decode(), moment) > least * error
