"""The trellis quantizer through `quantize_weight`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vqcompress.errors import ArchitectureError, CalibrationError, RecipeError
from vqcompress.formats.trellis_table import gaussian_error
from vqcompress.moments.rate_distortion import distortion_bound, spectrum
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import TrellisSettings, quantize_weight
from vqcompress.quantizers.layer_error import relative_error

FAST = TrellisSettings(state_bits=8, coordinate_descent=0, tail=0.0, row_scales=False)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated_moment(columns: int, seed: int = 0, samples: int = 512) -> torch.Tensor:
    """Second moment of inputs whose spectrum falls as 1 / i."""
    x = gaussian(samples, columns, seed=seed) / torch.arange(1, columns + 1) @ gaussian(columns, columns, seed=seed + 1)
    return x.t() @ x / samples


def stored(weight) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in weight.state_dict().items()}


def test_gaussian_weight_reaches_the_error_of_its_code():
    weight = gaussian(256, 128)
    quantized = quantize_weight(weight, bits=3.0)
    error = relative_error(weight, quantized.decode())
    assert quantized.bits_per_weight <= 3.0
    assert error < 1.1 * gaussian_error(12, 3)
    assert error < 1.15 * 2**-6 * 1.1  # Shannon's bound at 3 bits is 2**-6


@pytest.mark.parametrize("bits", [1.0, 1.7, 2.0, 2.5, 3.0, 3.25, 4.0, 4.5])
def test_bits_count_everything_and_are_used_up(bits, check_spec):
    weight = gaussian(128, 96)
    quantized = quantize_weight(
        weight, correlated_moment(96), bits=bits, settings=dataclasses.replace(FAST, state_bits=12)
    )
    check_spec(quantized)
    assert bits - 0.02 < quantized.bits_per_weight <= bits
    assert quantized.bits_per_weight == 8 * sum(map(len, stored(quantized).values())) / weight.numel()


def test_error_falls_with_bits():
    weight, moment = gaussian(128, 64), correlated_moment(64)
    errors = [
        relative_error(weight, quantize_weight(weight, moment, bits=bits, settings=FAST).decode(), moment)
        for bits in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 20


def test_second_moment_and_column_rates_pay():
    weight, moment = gaussian(128, 96), correlated_moment(96)
    blind = relative_error(weight, quantize_weight(weight, bits=3.0, settings=FAST).decode(), moment)
    calibrated = relative_error(weight, quantize_weight(weight, moment, bits=3.0, settings=FAST).decode(), moment)
    assert calibrated < blind / 10


def test_coordinate_descent_does_not_hurt():
    weight, moment = gaussian(96, 64), correlated_moment(64, samples=4096)
    errors = [
        relative_error(
            weight,
            quantize_weight(
                weight, moment, bits=2.0, settings=dataclasses.replace(FAST, coordinate_descent=p)
            ).decode(),
            moment,
        )
        for p in (0, 2)
    ]
    assert errors[1] <= errors[0]


def test_heavy_tails_get_a_heavy_table():
    student = gaussian(256, 64) / gaussian(4, 256, 64, seed=1).square().mean(0).sqrt()
    auto = quantize_weight(student, bits=3.0, settings=TrellisSettings(rotation=False))
    plain = quantize_weight(student, bits=3.0, settings=TrellisSettings(tail=0.0, rotation=False))
    assert auto.spec.tail >= 0.1
    assert relative_error(student, auto.decode()) < 0.8 * relative_error(student, plain.decode())
    assert quantize_weight(gaussian(256, 64), bits=3.0).spec.tail <= 0.05


def test_heavy_tails_at_a_high_rate_ask_for_a_rotation():
    student = gaussian(256, 64) / gaussian(4, 256, 64, seed=1).square().mean(0).sqrt()
    auto = quantize_weight(student, bits=5.0)
    table = quantize_weight(student, bits=5.0, settings=TrellisSettings(rotation=False))
    assert auto.spec.rotation == 256
    assert auto.bits_per_weight <= 5.0
    assert relative_error(student, auto.decode()) < 0.97 * relative_error(student, table.decode())
    assert quantize_weight(gaussian(256, 64), bits=5.0).spec.rotation == 0


def test_a_rotation_can_be_had_for_the_asking():
    weight = gaussian(48, 40)
    found = quantize_weight(weight, bits=3.0, settings=TrellisSettings(rotation=True))
    assert found.spec.rotation == 16
    assert relative_error(weight, found.decode()) < 0.025


def test_row_scales_are_bought_where_rows_differ():
    even = gaussian(64, 256)
    uneven = even * torch.logspace(-1, 1, 64)[:, None]
    assert not quantize_weight(even, bits=3.0).spec.row_scales
    assert quantize_weight(uneven, bits=3.0).spec.row_scales


@pytest.mark.parametrize("bits", [2.0, 3.0])
def test_a_weak_output_keeps_as_much_of_its_weights_as_a_strong_one(bits):
    """An eighth of the outputs have a tenth of the power. Each is left what a code for Gaussian weights leaves; one
    that only minimised the sum of squares would leave weak outputs four times as much."""
    even = gaussian(64, 512)
    weak = torch.arange(64) % 8 == 0
    weight = even * torch.where(weak, 0.1**0.5, 1.0)[:, None]
    found = quantize_weight(weight, bits=bits, settings=TrellisSettings(state_bits=8))
    left = (weight - found.decode()).square().sum(1) / weight.square().sum(1)
    expected = gaussian_error(8, bits)
    assert left[weak].mean() == pytest.approx(expected, rel=0.25)
    assert left[~weak].mean() == pytest.approx(expected, rel=0.25)


def columns_of_two_sizes(outputs: int = 64, columns: int = 48) -> torch.Tensor:
    """As where a block reads its skip connection beside the level below."""
    return gaussian(outputs, columns) * torch.where(torch.arange(columns) < columns // 2, 1.0, 0.08)


def test_column_scales_are_chosen_where_columns_differ(check_spec):
    even, uneven = gaussian(64, 48), columns_of_two_sizes()
    moment = torch.diag(uneven.square().mean(0).reciprocal())  # small weights on large inputs, so that all count alike
    assert not quantize_weight(even, bits=3.0).spec.column_scales
    found = quantize_weight(uneven, moment, bits=3.0)
    check_spec(found)
    assert found.spec.column_scales
    assert found.bits_per_weight <= 3.0
    without = quantize_weight(uneven, moment, bits=3.0, settings=TrellisSettings(column_scales=False))
    error, error_without = (relative_error(uneven, q.decode(), moment) for q in (found, without))
    assert error < 0.15 * error_without
    assert error < 1.4 * gaussian_error(12, 3)


def faint_copies(copied: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the second moment of 48 inputs and faint copies, which are asked to mend, tenfold, what the columns
    of their originals got wrong."""
    draw = torch.Generator().manual_seed(0)
    loud = torch.randn(1024, 48, generator=draw)
    inputs = torch.cat([loud, 0.1 * loud[:, :copied] + 1e-3 * torch.randn(1024, copied, generator=draw)], 1)
    return torch.randn(192, 48 + copied, generator=draw), inputs.t() @ inputs / len(inputs)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_feedback_asks_columns_for_no_more_than_they_can_give(bits):
    """Feedback that takes later columns for exact asks them for many times their range: 21 to 355 bounds.

    With whole rates, of which the original's columns get one more; half-integer ones leave 2.2 bounds at 2 bits.
    """
    weight, moment = faint_copies(48)
    settings = TrellisSettings(column_scales=False, damping=1e-6, half_rates=False)
    error = relative_error(weight, quantize_weight(weight, moment, bits=bits, settings=settings).decode(), moment)
    assert 1.0 < error / distortion_bound(spectrum(SecondMoment(moment)), bits) < 2.0


def test_column_scales_are_chosen_where_targets_leave_the_codes_range(check_spec):
    weight, moment = faint_copies(16)
    found, without = (
        quantize_weight(
            weight,
            moment,
            bits=3.0,
            # Half-integer rates alone take two thirds of the error away that column scales do.
            settings=TrellisSettings(column_scales=column_scales, damping=1e-6, half_rates=False),
        )
        for column_scales in ("auto", False)
    )
    check_spec(found)
    assert found.spec.column_scales
    assert found.bits_per_weight <= 3.0
    assert relative_error(weight, found.decode(), moment) < 0.2 * relative_error(weight, without.decode(), moment)


def test_column_scales_follow_what_feedback_makes_of_a_column():
    """Half of the inputs repeat the other half: their columns take up errors larger than themselves."""
    weight = columns_of_two_sizes()
    x = gaussian(400, 24)
    x = torch.cat([x, x + 0.05 * gaussian(400, 24, seed=1)], 1)
    moment = x.t() @ x / 400
    plain, scaled = (
        quantize_weight(
            weight, moment, bits=3.0, settings=dataclasses.replace(FAST, column_scales=column_scales, state_bits=12)
        )
        for column_scales in (False, True)
    )
    assert relative_error(weight, scaled.decode(), moment) < 0.5 * relative_error(weight, plain.decode(), moment)


@pytest.mark.parametrize("passes", [0, 2])
def test_column_scales_with_zero_columns_and_coordinate_descent(passes):
    weight = columns_of_two_sizes()
    weight[:, ::5] = 0
    moment = correlated_moment(48)
    found = quantize_weight(
        weight, moment, bits=3.0, settings=TrellisSettings(column_scales=True, coordinate_descent=passes)
    )
    assert torch.isfinite(found.decode()).all()
    assert relative_error(weight, found.decode(), moment) < 0.02
    nothing = quantize_weight(torch.zeros(64, 48), moment, bits=3.0, settings=TrellisSettings(column_scales=True))
    assert nothing.decode().count_nonzero() == 0


def test_same_seed_same_bytes_other_seed_other_bytes():
    weight, moment = gaussian(64, 32), correlated_moment(32)
    first, again, other = (quantize_weight(weight, moment, seed=seed) for seed in (0, 0, 1))
    assert stored(first) == stored(again)
    assert stored(first)["weight"] != stored(other)["weight"]
    errors = [relative_error(weight, q.decode(), moment) for q in (first, other)]
    assert errors[0] == pytest.approx(errors[1], rel=0.2)


@pytest.mark.parametrize("shape", [(40, 3), (40, 1), (12, 5), (3, 200), (9, 4, 3, 3), (33, 7, 1, 1)])
def test_odd_shapes(shape, check_spec):
    weight = gaussian(*shape)
    quantized = quantize_weight(weight, bits=6.0)
    check_spec(quantized)
    assert quantized.decode().shape == weight.shape
    assert quantized.bits_per_weight <= 6.0
    assert relative_error(weight, quantized.decode()) < 0.1


@pytest.mark.parametrize("state_bits", [8, 10, 12, 14])
def test_larger_states_code_better(state_bits):
    weight = gaussian(512, 64)
    settings_ = TrellisSettings(state_bits=state_bits, tail=0.0, row_scales=False)
    quantized = quantize_weight(weight, bits=3.0, settings=settings_)
    assert quantized.spec.state_bits == state_bits
    assert relative_error(weight, quantized.decode()) < 1.1 * gaussian_error(state_bits, 3)
    assert state_bits == 8 or gaussian_error(state_bits, 3) < gaussian_error(state_bits - 2, 3)


def test_zero_weight_decodes_to_zero():
    quantized = quantize_weight(torch.zeros(32, 16), bits=3.0)
    assert torch.equal(quantized.decode(), torch.zeros(32, 16))


def test_zero_row_stays_zero():
    weight = gaussian(64, 256)
    weight[5] = 0
    settings_ = dataclasses.replace(FAST, row_scales=True)
    assert torch.equal(quantize_weight(weight, bits=3.0, settings=settings_).decode()[5], torch.zeros(256))


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_deficient_moments_work(rank):
    weight, x = gaussian(64, 48), gaussian(max(rank, 1), 48, seed=3) * bool(rank)
    moment = x.t() @ x
    decoded = quantize_weight(weight, moment, bits=3.0, settings=FAST).decode()
    assert torch.isfinite(decoded).all()
    assert relative_error(weight, decoded) < 1.0
    if rank:
        assert relative_error(weight, decoded, moment) < 0.01


def test_float16_and_non_contiguous_weights():
    weight = gaussian(32, 64).half().t()
    quantized = quantize_weight(weight, bits=3.0, settings=FAST)
    assert relative_error(weight.float(), quantized.decode()) < 0.03


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"weight": torch.full((4, 4), float("nan"))}, RecipeError, "16 NaN"),
        ({"weight": torch.full((40, 40), float("inf"))}, RecipeError, "infinite"),
        ({"weight": torch.zeros(0, 8)}, RecipeError, "empty"),
        ({"weight": torch.zeros(8)}, ArchitectureError, "matrix view"),
        ({"weight": torch.full((40, 40), 1e9)}, RecipeError, "float16"),
        ({"weight": torch.ones(1, 1)}, RecipeError, "too small"),
        ({"second_moment": torch.eye(7)}, CalibrationError, "7, 7"),
        ({"second_moment": torch.full((16, 16), float("nan"))}, CalibrationError, "NaN"),
        ({"second_moment": -torch.eye(16)}, CalibrationError, "negative"),
        ({"bits": 0.5}, RecipeError, "out of range"),
        ({"bits": 9.0}, RecipeError, "out of range"),
        ({"bits": float("nan")}, RecipeError, "out of range"),
        ({"method": "magic"}, RecipeError, "unknown method"),
        ({"settings": 3}, RecipeError, "TrellisSettings"),
        ({"output_moment": torch.eye(16)}, CalibrationError, "32 outputs"),
        ({"output_moment": torch.full((32, 32), float("inf"))}, CalibrationError, "overflowed"),
        ({"output_moment": -torch.eye(32)}, CalibrationError, "negative"),
        ({"output_moment": torch.eye(32), "method": "gptq"}, RecipeError, "leave output_moment out"),
    ],
)
def test_mistakes_have_one_clear_error(arguments, error, words):
    with pytest.raises(error, match=words):
        quantize_weight(**{"weight": gaussian(32, 16), **arguments})


@pytest.mark.parametrize(
    "values",
    [
        {"state_bits": 11},
        {"state_bits": True},
        {"tail": "heavy"},
        {"tail": 4.5},
        {"rotation": 1},
        {"damping": 0.0},
        {"output_damping": float("nan")},
        {"coordinate_descent": -1},
        {"search": "tpu"},
        {"half_rates": None},
    ],
    ids=str,
)
def test_settings_name_the_value_that_they_do_not_take(values):
    (name,) = values
    with pytest.raises(RecipeError, match=f"trellis setting {name}="):
        TrellisSettings(**values)


@settings(deadline=None, max_examples=10)
@given(
    rows=st.integers(32, 90),
    columns=st.integers(1, 20),
    bits=st.floats(2.5, 6.0),
    seed=st.integers(0, 99),
    row_scales=st.booleans(),
    column_scales=st.booleans(),
)
def test_any_shape_rate_and_seed(rows, columns, bits, seed, row_scales, column_scales):
    """Codes that decoded to anything but what the search chose would leave an error of one or more. (Circles of fewer
    than 32 weights at one bit hold too few states to code well, and scales of outputs may leave the codes next to
    nothing.)"""
    assume(not row_scales or bits - 16 / columns >= 1.5)
    weight = gaussian(rows, columns, seed=seed)
    settings_ = dataclasses.replace(FAST, row_scales=row_scales, column_scales=column_scales)
    try:
        quantized = quantize_weight(weight, bits=bits, seed=seed, settings=settings_)
    except RecipeError:
        assert rows * columns * bits < 8 * (2 * rows + rows + 2 * columns + 8)
        return
    assert quantized.bits_per_weight <= bits
    assert relative_error(weight, quantized.decode()) < 0.7


def outputs_that_add_up(rows: int) -> torch.Tensor:
    """An output moment with few strong directions, as where the next layer sums."""
    mix = gaussian(rows, 6, seed=5)
    return mix @ mix.t() / 6 + 0.05 * torch.eye(rows)


def cost(weight, decoded, moment, outputs) -> float:
    error = weight - decoded
    return float(((outputs @ error) * (error @ moment)).sum())


OUTPUT_CHOICES: list[dict[str, Any]] = [
    {"coordinate_descent": 0},
    {"coordinate_descent": 2},
    {"row_scales": True},
    {"rotation": True},
    {"column_scales": True},
    {"state_bits": 14},
]


@pytest.mark.parametrize(
    ("rows", "search", "share", "choices"),
    [
        *((64, "decided", 0.5, choices) for choices in OUTPUT_CHOICES),
        *((160, "decided", 0.75, choices) for choices in OUTPUT_CHOICES[:2]),
        *((160, "survivors", 0.5, choices) for choices in OUTPUT_CHOICES[:3]),
    ],
    ids=str,
)
def test_outputs_that_add_up_are_coded_together(rows, search, share, choices, check_spec):
    weight, moment, outputs = gaussian(rows, 48), correlated_moment(48), outputs_that_add_up(rows)
    settings_ = TrellisSettings(**{"state_bits": 10, "output_search": search, **choices})
    alone = quantize_weight(weight, moment, bits=3.0, settings=settings_)
    together = quantize_weight(weight, moment, bits=3.0, settings=settings_, output_moment=outputs)
    check_spec(together)
    assert together.bits_per_weight <= 3.0
    assert cost(weight, together.decode(), moment, outputs) < share * cost(weight, alone.decode(), moment, outputs)


def test_row_scales_under_coupled_outputs_are_the_best():
    """No other scale of any one output does better: the refit solves for all of them together."""
    weight, moment, outputs = gaussian(40, 30), correlated_moment(30), outputs_that_add_up(40)
    settings_ = TrellisSettings(state_bits=8, row_scales=True, coordinate_descent=0, output_damping=0.0)
    found = quantize_weight(weight, moment, bits=3.0, settings=settings_, output_moment=outputs).decode()
    best = cost(weight, found, moment, outputs)
    for row in range(0, 40, 7):
        for factor in (0.99, 1.01):
            other = found.clone()
            other[row] *= factor
            assert cost(weight, other, moment, outputs) > best * (1 - 1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_deficient_output_moments_work(rank):
    weight, direction = gaussian(64, 48), gaussian(64, rank, seed=4)
    outputs = direction @ direction.t()
    decoded = quantize_weight(weight, bits=3.0, settings=FAST, output_moment=outputs).decode()
    assert relative_error(weight, decoded) < 0.06
    if rank:
        assert cost(weight, decoded, torch.eye(48), outputs) < 0.01 * cost(weight, 0 * weight, torch.eye(48), outputs)


def test_coupled_outputs_give_the_same_bytes_again():
    arguments = {"bits": 2.5, "settings": FAST, "output_moment": outputs_that_add_up(64), "seed": 3}
    first, again = (quantize_weight(gaussian(64, 48), correlated_moment(48), **arguments) for _ in range(2))
    assert stored(first) == stored(again)
