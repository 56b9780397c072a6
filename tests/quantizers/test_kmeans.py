"""Residual k-means: what it stores, what it weights, and the sizes it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vqcompress.errors import RecipeError
from vqcompress.methods import gave_way
from vqcompress.quantizers import quantize_weight
from vqcompress.quantizers.codebooks import kmeans, residual_codebooks
from vqcompress.quantizers.kmeans import KMeansSettings, learn_shared_kmeans
from vqcompress.quantizers.layer_error import relative_error

SMALL = KMeansSettings(code_bits=4, dimension=4)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_error_falls_with_bits_and_codes_take_what_was_asked() -> None:
    weight = gaussian(128, 64)
    errors = []
    for bits in (1, 2, 3, 4):
        quantized = quantize_weight(weight, method="kmeans", bits=bits, settings=SMALL)
        assert quantized.bits_per_weight <= bits
        assert quantized.bits_per_weight > 0.95 * bits or gave_way("kmeans", quantized.spec.format)
        errors.append(relative_error(weight, quantized.decode()))
    assert errors == sorted(errors, reverse=True)
    assert (
        errors[2] < 0.09
    )  # its codebooks take a third of a bit; a scalar Lloyd-Max code reaches .035, a greedy start is worse


def test_one_codebook_is_plain_k_means() -> None:
    """Few distinct vectors survive exactly when there is a codeword for each."""
    patterns = gaussian(16, 4)
    pattern_of = torch.randint(16, (8, 100), generator=torch.Generator().manual_seed(1))
    weight = patterns.half().float()[pattern_of].permute(0, 2, 1).reshape(32, 100)
    settings = KMeansSettings(code_bits=6, dimension=4, row_scales=False)
    bits = 1.5 + (16 * 64 * 4 + 16) / weight.numel()  # a code, its codebook and a scale
    assert (
        relative_error(weight, quantize_weight(weight, method="kmeans", bits=bits, settings=settings).decode()) < 1e-5
    )


def test_importance_moves_the_codewords() -> None:
    weight = gaussian(64, 64)
    moment = torch.diag(torch.where(torch.arange(64) < 8, 100.0, 0.01))
    informed = quantize_weight(weight, moment, method="kmeans", bits=2, settings=SMALL).decode()
    blind = quantize_weight(weight, None, method="kmeans", bits=2, settings=SMALL).decode()
    assert relative_error(weight, informed, moment) < 0.9 * relative_error(weight, blind, moment)


def test_fractional_bits_go_to_columns_of_more_power() -> None:
    weight = gaussian(64, 64)
    moment = torch.diag(torch.linspace(1, 5, 64))
    codebooks = 3 * 16 * 16 * 4 / weight.numel()
    quantized = quantize_weight(weight, moment, method="kmeans", bits=2.5 + codebooks, settings=SMALL)
    rates = quantized.spec.rates(64, quantized.tensors)
    assert set(rates.tolist()) == {2, 3}
    assert rates[40:].float().mean() > rates[:24].float().mean()
    assert quantized.bits_per_weight <= 2.5 + codebooks


def test_shared_codebooks_are_not_stored_with_the_layer() -> None:
    weights = [gaussian(64, 48, seed=1), gaussian(32, 16, 3, 3, seed=2)]
    shared = learn_shared_kmeans(weights, SMALL, 0)
    assert shared.shape == (3, 16, 4)
    assert shared.dtype == torch.float16
    for weight in weights:
        quantized = quantize_weight(weight, method="kmeans", bits=3, settings=SMALL, shared_codebooks=shared)
        assert "codebooks" not in quantized.state_dict()
        assert relative_error(weight, quantized.decode()) < 0.1


def test_same_seed_same_bytes_other_seed_other_bytes() -> None:
    weight = gaussian(64, 64)
    first, again, other = (
        quantize_weight(weight, method="kmeans", bits=2, seed=seed, settings=SMALL).tensors["weight"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_k_means_of_few_vectors_is_the_vectors() -> None:
    vectors = gaussian(5, 4)
    assert torch.equal(kmeans(vectors, 16, 0)[:5], vectors)


def test_faiss_keeps_its_threads() -> None:
    faiss = pytest.importorskip("faiss")
    threads = faiss.omp_get_max_threads()
    residual_codebooks(gaussian(100, 4), 2, 16, 1, 0)
    assert faiss.omp_get_max_threads() == threads


@pytest.mark.parametrize(
    ("name", "value"),
    [("dimension", 5), ("code_bits", 3), ("code_bits", 13), ("codebooks", 0), ("row_scales", "maybe")],
)
def test_sizes_are_checked(name: str, value: object) -> None:
    with pytest.raises(RecipeError, match=name):
        KMeansSettings(**{name: value})  # type: ignore[arg-type]
