"""GPTQ against round to nearest, against an unblocked textbook sweep, and on degenerate moments."""

from __future__ import annotations

import pytest
import torch

from vqcompress.errors import CalibrationError, RecipeError
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import quantize_weight
from vqcompress.quantizers.error_feedback import prepare_feedback
from vqcompress.quantizers.gptq import GPTQSettings
from vqcompress.quantizers.layer_error import relative_error
from vqcompress.quantizers.rtn import RTNSettings
from vqcompress.quantizers.scalar_grid import scalar_spec, search_grid


def problem(outputs: int, columns: int, samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A Gaussian weight and the second moment of correlated inputs (spectrum falling as 1/i)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.qr(torch.randn(columns, columns, generator=generator)).Q
    inputs = torch.randn(samples, columns, generator=generator) / torch.arange(1, columns + 1)
    inputs = inputs @ mixing
    return torch.randn(outputs, columns, generator=generator), inputs.t() @ inputs / samples


def textbook(weight: torch.Tensor, moment: torch.Tensor, bits: int, settings: GPTQSettings) -> torch.Tensor:
    """Optimal Brain Quantization as first stated: explicit inverse, one column eliminated at a time, float64."""
    feedback = prepare_feedback(SecondMoment(moment), settings.damping)
    spec = scalar_spec(bits, settings.group_size, settings.scale_bits)
    grid = search_grid(weight.t(), spec, feedback.sensitivity)
    damped = moment.double() + settings.damping * moment.double().diagonal().mean() * torch.eye(len(moment))
    inverse, target, decoded = torch.linalg.inv(damped), weight.double().clone(), torch.zeros_like(weight)
    for j in feedback.order.tolist():
        decoded[:, j] = grid.decode(j, grid.encode(j, target[:, j].float()))
        error = (target[:, j] - decoded[:, j]) / inverse[j, j]
        target -= error[:, None] * inverse[j]
        inverse = inverse - inverse[:, j : j + 1] @ inverse[j : j + 1] / inverse[j, j]
    return decoded


def test_feedback_pays_on_correlated_inputs() -> None:
    weight, moment = problem(64, 192, 512)
    plain = relative_error(
        weight, quantize_weight(weight, None, method="rtn", bits=3, settings=RTNSettings()).decode(), moment
    )
    fed_back = relative_error(
        weight, quantize_weight(weight, moment, method="gptq", bits=3, settings=GPTQSettings()).decode(), moment
    )
    assert fed_back < 0.1 * plain


@pytest.mark.parametrize(("bits", "most"), [(2, 0.85), (3, 0.95), (4, 1.0)])
def test_feedback_that_counts_on_the_grids_errors_pays(bits: int, most: float) -> None:
    weight, moment = problem(64, 192, 512)
    known, exact = (
        relative_error(
            weight,
            quantize_weight(
                weight, moment, method="gptq", bits=bits, settings=GPTQSettings(zero_forcing=zero_forcing)
            ).decode(),
            moment,
        )
        for zero_forcing in (False, True)
    )
    assert known < most * exact


@pytest.mark.parametrize("scale_bits", [6, 16])
def test_equals_the_textbook_sweep(scale_bits: int) -> None:
    weight, moment = problem(8, 24, 200)
    settings = GPTQSettings(group_size=8, scale_bits=scale_bits, damping=1e-2, zero_forcing=True)
    decoded = quantize_weight(weight, moment, method="gptq", bits=3, settings=settings).decode()
    torch.testing.assert_close(decoded, textbook(weight, moment, 3, settings), rtol=1e-5, atol=1e-5)


def test_identity_is_round_to_nearest() -> None:
    weight, _ = problem(16, 130, 4)
    quantized = quantize_weight(weight, None, method="gptq", bits=3, settings=GPTQSettings(64, scale_bits=16))
    assert torch.equal(
        quantized.decode(), quantize_weight(weight, None, method="rtn", bits=3, settings=RTNSettings()).decode()
    )
    assert set(quantized.state_dict()) == {"weight", "group_scale", "group_zero"}


@pytest.mark.parametrize("samples", [1, 20])
def test_rank_deficient_moments(samples: int) -> None:
    weight, moment = problem(16, 96, samples)
    moment[5], moment[:, 5] = 0, 0
    decoded = quantize_weight(weight, moment, method="gptq", bits=3, settings=GPTQSettings()).decode()
    assert decoded.isfinite().all()
    assert relative_error(weight, decoded, moment) < 0.05


def test_zero_moment_zero_rows_and_single_column() -> None:
    weight, _ = problem(16, 64, 4)
    weight[3] = 0
    decoded = quantize_weight(weight, torch.zeros(64, 64), method="gptq", bits=3, settings=GPTQSettings()).decode()
    assert relative_error(weight, decoded) < 0.05
    assert (decoded[3] == 0).all()
    single = quantize_weight(weight[:, :1], torch.ones(1, 1), method="gptq", bits=3, settings=GPTQSettings()).decode()
    assert relative_error(weight[:, :1], single) < 1e-6


def test_moments_that_are_not_finite_are_refused() -> None:
    weight, moment = problem(8, 16, 40)
    moment[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="NaN"):
        quantize_weight(weight, moment, method="gptq", bits=3, settings=GPTQSettings())


@pytest.mark.parametrize("damping", [0, -1, 2, float("nan")])
def test_damping_is_checked(damping: float) -> None:
    with pytest.raises(RecipeError, match="damping"):
        GPTQSettings(damping=damping)


def test_fractional_bits_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"whole number|out of range|whole bits"):
        quantize_weight(*problem(4, 4, 8), method="gptq", bits=2.5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_half_the_group_with_packed_scales_beats_float16_scales_in_as_many_bits(bits: int) -> None:
    weight, moment = problem(64, 1024, 2048)
    plain, packed = (
        quantize_weight(weight, moment, method="gptq", bits=bits, settings=settings)
        for settings in (GPTQSettings(64, scale_bits=16, damping=1e-3), GPTQSettings(damping=1e-3))
    )
    assert packed.bits_per_weight == pytest.approx(bits + (6 + bits) / 32 + 16 / 1024)
    assert packed.bits_per_weight < plain.bits_per_weight + 0.02
    assert relative_error(weight, packed.decode(), moment) < 0.95 * relative_error(weight, plain.decode(), moment)


def test_weights_too_small_for_packed_scales_keep_float16_scales() -> None:
    weight, moment = problem(16, 128, 256)
    quantized = quantize_weight(weight * 1e-4, moment, method="gptq", bits=4)
    assert not quantized.spec.packed_scales
    assert relative_error(weight * 1e-4, quantized.decode(), moment) < 0.01


def one_direction() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that are nearly one direction: with little damping, zero-forcing feedback drives targets out of their
    grids."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(4096, 1, generator=generator) + 0.01 * torch.randn(4096, 96, generator=generator)
    return torch.randn(64, 96, generator=generator), inputs.t() @ inputs / 4096


def steep() -> tuple[torch.Tensor, torch.Tensor]:
    """A spectrum that falls as 1/i³, most of which much damping would drown."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.linalg.qr(torch.randn(192, 192, generator=generator)).Q
    inputs = torch.randn(4096, 192, generator=generator) / torch.arange(1, 193) ** 3 @ mixing
    return torch.randn(64, 192, generator=generator), inputs.t() @ inputs / 4096


@pytest.mark.parametrize(("case", "bits", "best"), [(one_direction, 2, 1e-2), (steep, 3, 1e-4)])
def test_damping_is_the_best_of_each_planted_case(case, bits: int, best: float) -> None:
    weight, moment = case()

    def error(damping: float | str) -> float:
        settings = GPTQSettings(damping=damping, zero_forcing=True)  # type: ignore[arg-type]
        return relative_error(
            weight, quantize_weight(weight, moment, method="gptq", bits=bits, settings=settings).decode(), moment
        )

    errors = {damping: error(damping) for damping in (1e-2, 1e-3, 1e-4)}
    assert min(errors, key=errors.__getitem__) == best
    assert error("auto") == errors[best]


@pytest.mark.parametrize("bits", [2, 3])
def test_nearly_one_direction_needs_no_damping(bits: int) -> None:
    """Feedback that counts on the grids' errors keeps targets within them by itself."""
    weight, moment = one_direction()
    settings = GPTQSettings(damping=1e-4), GPTQSettings(damping=1e-2, zero_forcing=True)
    errors = [
        relative_error(weight, quantize_weight(weight, moment, method="gptq", bits=bits, settings=s).decode(), moment)
        for s in settings
    ]
    assert errors[0] < errors[1]
