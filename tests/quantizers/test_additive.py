"""The additive quantizer against plainer codes, its budgets, shared codebooks, and odd input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vqcompress.errors import CalibrationError, RecipeError
from vqcompress.quantizers import quantize_weight
from vqcompress.quantizers.additive import AdditiveSettings, learn_shared_codebooks
from vqcompress.quantizers.gptq import GPTQSettings
from vqcompress.quantizers.layer_error import relative_error

# Codebooks come on top of the bits: on layers this small they would take most of them.
QUICK = AdditiveSettings(code_bits=4, beam=8, rounds=4, coordinate_descent=1, count_codebooks=False)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int, samples: int, seed: int = 0) -> Tensor:
    """Second moment of inputs whose spectrum falls as 1/i."""
    mixing = torch.linalg.qr(gaussian(columns, columns, seed=seed)).Q
    inputs = gaussian(samples, columns, seed=seed + 1) / torch.arange(1, columns + 1) @ mixing
    return inputs.t() @ inputs / samples


def test_below_gptq_at_equal_bytes_on_correlated_inputs() -> None:
    weight, moment = gaussian(192, 128), correlated(128, 600)
    counted = replace(QUICK, count_codebooks=True)
    scalar, better_scalar = (
        quantize_weight(weight, moment, method="gptq", bits=3, settings=GPTQSettings(zero_forcing=zero_forcing))
        for zero_forcing in (True, False)
    )
    vector = quantize_weight(weight, moment, method="additive", bits=3.29, settings=counted)
    assert vector.bits_per_weight <= scalar.bits_per_weight
    # Its codebooks take a tenth of the bits of a weight this small, and still:
    assert relative_error(weight, vector.decode(), moment) < 0.95 * relative_error(weight, scalar.decode(), moment)
    assert relative_error(weight, vector.decode(), moment) < relative_error(weight, better_scalar.decode(), moment)


def test_below_a_scalar_code_on_independent_inputs() -> None:
    weight = gaussian(256, 96)
    quantized = quantize_weight(weight, method="additive", bits=3, settings=QUICK)
    assert relative_error(weight, quantized.decode()) < 0.0309  # RTN with 3.3 bits


def test_coordinate_descent_and_more_bits_pay() -> None:
    weight, moment = gaussian(64, 64), correlated(64, 400)

    def error(bits: float, passes: int) -> float:
        settings = AdditiveSettings(code_bits=4, beam=8, rounds=2, coordinate_descent=passes)
        return relative_error(
            weight, quantize_weight(weight, moment, method="additive", bits=bits, settings=settings).decode(), moment
        )

    assert error(2.5, 3) < 0.97 * error(2.5, 0)
    assert error(3.5, 0) < error(3, 0) < error(2.5, 0)


@pytest.mark.parametrize("bits", [1.0, 2.0, 2.7, 4.0])
@pytest.mark.parametrize("row_scales", [True, False])
def test_the_budget_holds(bits: float, row_scales: bool) -> None:
    weight, moment = gaussian(72, 100), correlated(100, 400)
    settings = AdditiveSettings(
        code_bits=4, beam=4, rounds=1, coordinate_descent=0, row_scales=row_scales, count_codebooks=False
    )
    quantized = quantize_weight(weight, moment, method="additive", bits=bits, settings=settings)
    stored = quantized.nbytes - quantized.tensors["codebooks"].nbytes - (0 if row_scales else 2)
    assert 0.97 * bits * weight.numel() < 8 * stored + 80 <= bits * weight.numel() + 80
    assert quantized.spec.row_scales == row_scales


def test_own_codebooks_can_be_counted() -> None:
    settings = AdditiveSettings(code_bits=4, beam=4, rounds=1, coordinate_descent=0, count_codebooks=True)
    quantized = quantize_weight(gaussian(128, 128), method="additive", bits=3, settings=settings)
    assert quantized.bits_per_weight <= 3.001
    with pytest.raises(RecipeError, match="share codebooks"):
        quantize_weight(gaussian(8, 8), method="additive", bits=1, settings=settings)


@pytest.mark.parametrize(
    ("dimension", "code_bits", "codebooks"), [(4, 4, 2), (4, 7, 1), (8, 8, 1), (16, 6, 3), (8, 9, 2)]
)
def test_sizes(dimension: int, code_bits: int, codebooks: int) -> None:
    weight = gaussian(64, 48)
    sizes = {"dimension": dimension, "code_bits": code_bits, "codebooks": codebooks}
    settings = AdditiveSettings(**sizes, beam=4, rounds=1, coordinate_descent=1, count_codebooks=False)
    quantized = quantize_weight(
        weight, correlated(48, 200), method="additive", bits=code_bits * codebooks / dimension, settings=settings
    )
    assert (quantized.spec.dimension, quantized.spec.code_bits) == (dimension, code_bits)
    assert quantized.spec.codebooks <= codebooks
    shapes = quantized.spec.tensor_shapes(64, 48)
    assert {name: (tuple(t.shape), t.dtype) for name, t in quantized.tensors.items()} == shapes


def test_shared_codebooks_fit_all_layers_and_are_not_stored() -> None:
    weights = [gaussian(96, 64, seed=1), 30 * gaussian(64, 16, 3, 3, seed=2)]
    shared = learn_shared_codebooks(weights, AdditiveSettings(code_bits=5, rounds=2), seed=0)
    assert shared.dtype == torch.float16
    assert shared.shape[1:] == (32, 8)
    for weight in weights:
        moment = correlated(weight[0].numel(), 700)
        quantized = quantize_weight(weight, moment, method="additive", bits=3, shared_codebooks=shared)
        assert quantized.uses_shared_codebook
        assert "codebooks" not in quantized.state_dict()
        assert quantized.bits_per_weight < 3.01
        assert relative_error(weight, quantized.decode(), moment) < 0.01


def test_shared_codebooks_need_layers() -> None:
    with pytest.raises(RecipeError, match="no weights"):
        learn_shared_codebooks([], AdditiveSettings(), seed=0)


def test_same_seed_same_bytes_other_seed_other_bytes() -> None:
    weight, moment = gaussian(64, 64), correlated(64, 300)
    first, again, other = (
        quantize_weight(weight, moment, method="additive", bits=2, seed=seed, settings=QUICK).state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["codebooks"], other["codebooks"])


@pytest.mark.parametrize("samples", [1, 10])
def test_rank_deficient_moments(samples: int) -> None:
    weight, moment = gaussian(64, 64), correlated(64, samples)
    decoded = quantize_weight(weight, moment, method="additive", bits=3, settings=QUICK).decode()
    assert decoded.isfinite().all()
    assert relative_error(weight, decoded, moment) < 0.02


def test_zero_moment_and_zero_weight() -> None:
    weight = gaussian(32, 32)
    decoded = quantize_weight(weight, torch.zeros(32, 32), method="additive", bits=3, settings=QUICK).decode()
    assert relative_error(weight, decoded) < 0.1
    zero = quantize_weight(torch.zeros(32, 32), correlated(32, 90), method="additive", bits=3, settings=QUICK).decode()
    assert (zero == 0).all()


def test_zero_rows_stay_zero_and_odd_rows_are_padded() -> None:
    weight, moment = gaussian(61, 64), correlated(64, 300)
    weight[::7] = 0
    decoded = quantize_weight(weight, moment, method="additive", bits=3, settings=QUICK).decode()
    assert (decoded[::7] == 0).all()
    assert relative_error(weight, decoded, moment) < 0.02


def test_single_column_and_single_row() -> None:
    column, row = gaussian(256, 1), gaussian(1, 256)
    decoded = quantize_weight(column, torch.ones(1, 1), method="additive", bits=4, settings=QUICK).decode()
    assert relative_error(column, decoded) < 0.05
    decoded = quantize_weight(row, correlated(256, 300), method="additive", bits=8, settings=QUICK).decode()
    assert decoded.shape == row.shape
    assert decoded.isfinite().all()


@pytest.mark.slow
def test_outliers_are_not_lost() -> None:
    weight = gaussian(256, 640)
    places = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(1))[:20]
    weight.view(-1)[places] *= 40
    decoded = quantize_weight(weight, method="additive", bits=3, settings=replace(QUICK, code_bits=6)).decode()
    assert relative_error(weight.view(-1)[places][None], decoded.reshape(-1)[places][None]) < 0.1


def test_nan_and_overflow_are_refused() -> None:
    weight = gaussian(16, 16)
    with pytest.raises(RecipeError, match="range of float16"):
        quantize_weight(weight * 1e7, method="additive", bits=3, settings=QUICK)
    moment = correlated(16, 40)
    moment[0, 0] = float("inf")
    with pytest.raises(CalibrationError, match="infinite"):
        quantize_weight(weight, moment, method="additive", bits=3, settings=QUICK)
    weight[0, 0] = float("nan")
    with pytest.raises(RecipeError, match="NaN"):
        quantize_weight(weight, method="additive", bits=3, settings=QUICK)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dimension", 6),
        ("code_bits", 3),
        ("code_bits", 13),
        ("codebooks", 0),
        ("beam", 0),
        ("rounds", -1),
        ("damping", 0),
    ],
)
def test_settings_are_checked(name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=name):
        AdditiveSettings(**{name: value})  # type: ignore[arg-type]


def test_column_scales_are_chosen_where_columns_differ(check_spec):
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    assert not quantize_weight(weight, method="additive", bits=3, settings=QUICK).spec.column_scales
    weight[:, 24:] *= 0.08
    moment = torch.diag(weight.square().mean(0).reciprocal())  # small weights on large inputs, so that all count alike
    scaled, plain = (
        quantize_weight(weight, moment, method="additive", bits=3, settings=replace(QUICK, column_scales=column_scales))
        for column_scales in ("auto", False)
    )
    check_spec(scaled)
    assert scaled.spec.column_scales
    assert relative_error(weight, scaled.decode(), moment) < 0.3 * relative_error(weight, plain.decode(), moment)
