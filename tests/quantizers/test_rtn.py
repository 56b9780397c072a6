"""RTN against the plainest possible grid, and what it does with odd input."""

from __future__ import annotations

import pytest
import torch

from vqcompress.errors import RecipeError
from vqcompress.quantizers import quantize_weight
from vqcompress.quantizers.layer_error import relative_error
from vqcompress.quantizers.rtn import RTNSettings
from vqcompress.quantizers.scalar_grid import (
    SEARCHED_AT_ONCE,
    _least,
    _least_compiled,
    _shrunken,
    scalar_spec,
    search_grid,
)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def minmax_reference(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Asymmetric min-max rounding without any clip, written as plainly as it can be."""
    result = torch.empty_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[row, start : start + group]
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            scale = (high - low) / (2**bits - 1)
            zero = round(-low / scale)
            result[row, start : start + group] = ((part / scale).round() + zero).clamp(0, 2**bits - 1) * scale
            result[row, start : start + group] -= zero * scale
    return result


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clip_search_beats_min_max(bits: int) -> None:
    weight = gaussian(32, 128)
    error = relative_error(
        weight, quantize_weight(weight, None, method="rtn", bits=bits, settings=RTNSettings(32)).decode()
    )
    reference = relative_error(weight, minmax_reference(weight, bits, 32))
    assert error < 0.95 * reference


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_weights_on_a_grid_survive_exactly(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (16, 64), generator=torch.Generator().manual_seed(bits))
    codes[:, 0], codes[:, 1] = 0, 2**bits - 1
    weight = (codes - 1).float() * 0.25
    assert torch.equal(
        quantize_weight(weight, None, method="rtn", bits=bits, settings=RTNSettings(64)).decode(), weight
    )


def test_error_of_gaussian_weights_at_three_bits() -> None:
    weight = gaussian(256, 256)
    assert (
        relative_error(weight, quantize_weight(weight, None, method="rtn", bits=3, settings=RTNSettings()).decode())
        < 0.0313
    )


def test_bits_count_scales_and_zeros() -> None:
    quantized = quantize_weight(gaussian(64, 128), None, method="rtn", bits=3, settings=RTNSettings(64))
    assert quantized.bits_per_weight == 3 + (16 + 3) / 64


def test_convolutions_and_short_last_groups() -> None:
    weight = gaussian(10, 3, 3, 3)
    decoded = quantize_weight(weight, None, method="rtn", bits=4, settings=RTNSettings(16)).decode()
    assert decoded.shape == weight.shape
    assert relative_error(weight, decoded) < 0.01


def test_zero_rows_and_one_sided_rows() -> None:
    weight = gaussian(4, 64)
    weight[0], weight[1], weight[2] = 0, weight[1].abs() + 1, -weight[2].abs() - 1
    decoded = quantize_weight(weight, None, method="rtn", bits=4, settings=RTNSettings()).decode()
    assert (decoded[0] == 0).all()
    for row in (1, 2):
        assert relative_error(weight[row : row + 1], decoded[row : row + 1]) < 0.005


def test_single_column() -> None:
    weight = gaussian(40, 1)
    assert (
        relative_error(weight, quantize_weight(weight, None, method="rtn", bits=3, settings=RTNSettings()).decode())
        < 1e-6
    )


@pytest.mark.parametrize("bits", [1, 9, 3.5, 0, float("nan")])
def test_other_widths_are_refused(bits: float) -> None:
    with pytest.raises(RecipeError, match=r"whole|out of range"):
        quantize_weight(gaussian(4, 4), None, method="rtn", bits=bits, settings=RTNSettings())


def test_values_beyond_float16_scales_are_refused() -> None:
    with pytest.raises(RecipeError, match="range of float16"):
        quantize_weight(gaussian(4, 64) * 1e7, None, method="rtn", bits=3, settings=RTNSettings())


@pytest.mark.parametrize("group_size", [0, -64, 2.5])
def test_group_size_is_checked(group_size: int) -> None:
    with pytest.raises(RecipeError, match="group_size"):
        RTNSettings(group_size)


def test_groups_are_searched_as_if_each_were_alone() -> None:
    spec, outputs = scalar_spec(3, 64), 1500
    columns = gaussian(SEARCHED_AT_ONCE // outputs + 100, outputs) * torch.rand(outputs)
    whole = search_grid(columns, spec, torch.ones(len(columns)))
    for first in (0, 640, 64 * (len(columns) // 64)):
        part = columns[first : first + 64]
        alone = search_grid(part, spec, torch.ones(len(part)))
        assert torch.equal(whole.scale[first // 64], alone.scale[0])
        assert torch.equal(whole.zero[first // 64], alone.zero[0])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_the_compiled_search_finds_what_plain_operations_find(bits: int, size: int) -> None:
    grouped = gaussian(5, size, 37, seed=bits) * 10.0 ** gaussian(37, seed=1)
    grouped[:, :, 3], grouped[:, :, 4] = 0, 1.5
    grouped[2, 0, 5] = 300.0
    mass = gaussian(5, size, 1).square()
    low, high = grouped.amin(1).clamp(max=0), grouped.amax(1).clamp(min=0)
    candidates = [_shrunken(low * shrink, high * shrink, bits) for shrink in (1.0, 0.9, 0.8, 0.7, 0.5)]
    given = grouped, mass, *(torch.stack(part) for part in zip(*candidates, strict=True))
    (chosen, error), (expected, least) = (search(*given, bits) for search in (_least_compiled, _least))
    torch.testing.assert_close(error, least, rtol=1e-4, atol=1e-9)
    assert (chosen == expected).float().mean() > 0.98  # candidates of one error up to rounding
