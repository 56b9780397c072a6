"""``bits`` is a budget for everything stored; what does not fit, in bits or in float16, is refused in a sentence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vqcompress.errors import RecipeError, UnfitWeightError
from vqcompress.methods import METHODS
from vqcompress.quantizers import AdditiveSettings, KMeansSettings, quantize_weight
from vqcompress.quantizers.layer_error import relative_error
from vqcompress.quantizers.weight_vectors import own_code_bits

BUDGETED = [name for name, method in METHODS.items() if not method.whole_bits]
OUTPUTS, COLUMNS = 96, 128


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int = COLUMNS) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4 * columns, columns, generator=generator) * torch.logspace(0, -1.5, columns)
    x = x @ torch.linalg.qr(torch.randn(columns, columns, generator=generator))[0]
    return x.t() @ x / len(x)


@pytest.mark.parametrize("method", BUDGETED)
@pytest.mark.parametrize("bits", [1.5, 2.0, 3.0, 4.5])
@pytest.mark.parametrize("shape", [(OUTPUTS, COLUMNS), (64, 96), (48, 40), (7, 13), (1, 300), (300, 1)])
def test_everything_stored_fits_the_bits_or_the_weight_is_refused(method, bits, shape):
    weight, moment = gaussian(*shape), correlated(shape[1])
    try:
        packed = quantize_weight(weight, moment, method=method, bits=bits)
    except UnfitWeightError:
        packed = None
    if packed is None:
        assert min(shape) < 50  # all larger ones fit
    else:
        assert packed.bits_per_weight <= bits
        assert packed.decode().isfinite().all()


def test_more_bits_buy_less_error_where_codebooks_take_most_of_them():
    weight = gaussian(OUTPUTS, COLUMNS)
    for method in ("kmeans", "additive"):
        decoded = [quantize_weight(weight, method=method, bits=bits).decode() for bits in (1.5, 2.5, 3.5, 5.0)]
        errors = [relative_error(weight, each) for each in decoded]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.02 < 0.1 < errors[0]


def test_codebooks_may_come_on_top_where_settings_say_so():
    settings = AdditiveSettings(count_codebooks=False, code_bits=6, rounds=1, coordinate_descent=0, beam=4)
    packed = quantize_weight(gaussian(OUTPUTS, COLUMNS), method="additive", bits=3.0, settings=settings)
    beside = packed.nbytes - packed.tensors["codebooks"].nbytes
    assert 8 * beside / packed.tensors["weight"].new_empty(OUTPUTS, COLUMNS).numel() <= 3.01
    assert packed.bits_per_weight > 3.5


def test_fixed_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UnfitWeightError, match="codebooks within"):
        quantize_weight(gaussian(64, 64), method="kmeans", bits=2.0, settings=KMeansSettings(code_bits=10))


def test_counted_codebooks_are_small_on_small_layers():
    assert own_code_bits(200_000, 8, 3.0, flat=True, counted=False) == 6
    assert own_code_bits(10_000_000, 8, 3.0, flat=True, counted=True) == 8
    assert own_code_bits(600_000, 8, 3.0, flat=True, counted=True) == 6
    assert own_code_bits(20_000, 8, 3.0, flat=True, counted=True) == 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e4])
def test_a_weight_at_the_ends_of_float16_is_coded_as_well_as_any(method, size):
    weight, moment = gaussian(OUTPUTS, COLUMNS), correlated()
    usual = relative_error(weight, quantize_weight(weight, moment, method=method, bits=3).decode(), moment)
    decoded = quantize_weight(size * weight, moment, method=method, bits=3).decode()
    assert relative_error(weight, decoded / size, moment) < 1.15 * usual


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("size", "bits"), [(1e-7, 2), (1e-7, 8), (1e-9, 3), (1e-20, 3), (1e-38, 3), (1e-44, 3), (1e6, 3), (1e30, 3)]
)
def test_a_weight_beyond_them_is_refused(method, size, bits):
    weight = gaussian(OUTPUTS, COLUMNS) * size
    assert weight.any()
    with pytest.raises(UnfitWeightError, match=r"float16.*(keep this layer dense|rescale)"):
        quantize_weight(weight, correlated(), method=method, bits=bits)


def test_one_tiny_weight_among_zeros_is_refused_and_a_usual_one_coded():
    weight = torch.zeros(OUTPUTS, COLUMNS)
    weight[3, 4] = 1e-9
    for method in METHODS:
        with pytest.raises(UnfitWeightError):
            quantize_weight(weight, method=method, bits=3)
    weight[3, 4] = 1.0
    for method in METHODS:
        assert quantize_weight(weight, method=method, bits=3).decode()[3, 4] == pytest.approx(1.0, rel=1e-3)


def moments() -> dict[str, Tensor | None]:
    dead = correlated()
    dead[[5, 77]] = 0
    dead[:, [5, 77]] = 0
    return {
        "none": None,
        "zero": torch.zeros(COLUMNS, COLUMNS),
        "dead inputs": dead,
        "faint": 1e-30 * correlated(),
        "strong": 1e30 * correlated(),
        "one input": torch.zeros(COLUMNS, COLUMNS).index_put((torch.tensor(3), torch.tensor(3)), torch.tensor(2.0)),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("moment", moments().values(), ids=moments())
def test_odd_inputs_are_coded(method, moment):
    weight = gaussian(OUTPUTS, COLUMNS)
    decoded = quantize_weight(weight, moment, method=method, bits=4).decode()
    assert decoded.isfinite().all()
    assert relative_error(weight, decoded, moment) < 0.04
    assert not quantize_weight(0 * weight, moment, method=method, bits=4).decode().any()


def test_an_unfit_weight_is_a_wrong_recipe_too():
    assert issubclass(UnfitWeightError, RecipeError)
