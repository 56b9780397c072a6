"""A layer that others trained: one weight of 175 standard deviations meets the strongest input (fixtures/README.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vqcompress.formats import ScalarSpec
from vqcompress.quantizers import TrellisSettings, quantize_weight
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


@pytest.mark.parametrize(("method", "bits"), [("trellis", 2.0), ("trellis", 3.0), ("trellis", 4.0), ("additive", 3.0)])
def test_a_vector_code_is_ahead_of_gptq_in_the_sum_and_in_the_worst_output(layer, method, bits):
    weight, moment = layer
    packed = quantize_weight(weight, moment, method=method, bits=bits)
    gptq = quantize_weight(weight, moment, method="gptq", bits=bits)
    assert packed.bits_per_weight < gptq.bits_per_weight
    ours, theirs = packed.decode(), gptq.decode()
    assert relative_error(weight, ours, moment) < 0.75 * relative_error(weight, theirs, moment)
    assert channel_errors(weight, ours, moment).max() < channel_errors(weight, theirs, moment).max()


def test_without_outliers_a_scalar_code_has_to_save_the_layer(layer):
    weight, moment = layer
    settings = TrellisSettings(outliers=False, coordinate_descent=0)
    saved = quantize_weight(weight, moment, bits=3.0, settings=settings)
    kept = quantize_weight(weight, moment, bits=3.0)
    assert isinstance(saved.spec, ScalarSpec)
    assert 0 < kept.spec.outliers < 100
    assert relative_error(weight, kept.decode(), moment) < 0.2 * relative_error(weight, saved.decode(), moment)
