"""Beam search against all combinations, and what a smaller beam may lose."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from vqcompress.search.beam import BeamSearch, sum_codewords


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(targets: Tensor, codebooks: Tensor) -> Tensor:
    """Least squared error over every combination of codewords, ``[n]``."""
    combinations = torch.tensor(list(itertools.product(range(codebooks.shape[1]), repeat=len(codebooks))))
    return torch.cdist(targets.double(), sum_codewords(combinations, codebooks.double())).amin(1).square()


def squared_errors(targets: Tensor, codes: Tensor, codebooks: Tensor) -> Tensor:
    return (targets.double() - sum_codewords(codes, codebooks.double())).square().sum(1)


@pytest.mark.parametrize(("count", "size", "dimension"), [(1, 16, 4), (2, 16, 8), (3, 5, 4), (4, 4, 16), (3, 20, 8)])
def test_full_beam_equals_brute_force(count: int, size: int, dimension: int) -> None:
    targets, codebooks = gaussian(40, dimension, seed=1), gaussian(count, size, dimension, seed=2) / count**0.5
    codes = BeamSearch(codebooks, size ** (count - 1))(targets, count)
    assert codes.shape == (40, count)
    assert int(codes.min()) >= 0
    assert int(codes.max()) < size
    torch.testing.assert_close(
        squared_errors(targets, codes, codebooks), brute_force(targets, codebooks), rtol=1e-5, atol=1e-6
    )


def test_beam_of_one_is_greedy() -> None:
    targets, codebooks = gaussian(50, 8), gaussian(3, 32, 8, seed=1)
    codes, residual = BeamSearch(codebooks, 1)(targets, 3), targets.clone()
    for level in range(3):
        nearest = torch.cdist(residual, codebooks[level]).argmin(1)
        assert torch.equal(codes[:, level].long(), nearest)
        residual -= codebooks[level][nearest]


def test_wider_beams_lose_less() -> None:
    targets, codebooks = gaussian(300, 8), gaussian(4, 16, 8, seed=1) / 2
    errors = [
        float(squared_errors(targets, BeamSearch(codebooks, beam)(targets, 4), codebooks).mean())
        for beam in (1, 4, 16, 256)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_a_lower_rate_uses_the_first_codebooks_only() -> None:
    targets, codebooks = gaussian(20, 8), gaussian(4, 16, 8, seed=1)
    assert torch.equal(BeamSearch(codebooks, 8)(targets, 2), BeamSearch(codebooks[:2], 8)(targets, 2))
    assert BeamSearch(codebooks, 8)(targets, 0).shape == (20, 0)


def test_sums_of_codewords_survive_exactly() -> None:
    codebooks = gaussian(3, 16, 8) * torch.tensor([4.0, 1.0, 0.25])[:, None, None]
    codes = torch.randint(16, (100, 3), generator=torch.Generator().manual_seed(1))
    targets = sum_codewords(codes, codebooks)
    found = BeamSearch(codebooks, 64)(targets, 3)
    assert float(squared_errors(targets, found, codebooks).max()) < 1e-9


def test_a_cached_search_finds_what_a_fresh_one_found(tmp_path):
    """Two near ties among random vectors: loops compiled apart round them differently once numba has cached them."""
    script = (
        "import torch; from vqcompress.search.beam import BeamSearch\n"
        "draw = torch.Generator().manual_seed(0)\n"
        "sizes = 0.8 ** torch.arange(8)[:, None, None]\n"
        "codebooks = (torch.randn(8, 16, 8, generator=draw) * sizes).half().float()\n"
        "vectors = torch.randn(400_000, 8, generator=draw)[[187_759, 270_294]]\n"
        "print(BeamSearch(codebooks, 4)(vectors, 8).tolist())"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    fresh, cached = (
        subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert fresh.stdout == cached.stdout
