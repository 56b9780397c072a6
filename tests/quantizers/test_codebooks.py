"""Codebook learning and the closed-form refit under the true metric."""

from __future__ import annotations

import torch
from torch import Tensor

from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.codebooks import CodebookProblem, prefix_errors, refine_codebooks, residual_codebooks
from vqcompress.search.beam import sum_codewords


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rounds_of_search_and_least_squares_pay() -> None:
    vectors = gaussian(2000, 8)
    codebooks = residual_codebooks(vectors, 3, 16, 4, seed=0)
    refined = refine_codebooks(codebooks, vectors, torch.full((2000,), 3), 16, rounds=6)
    assert prefix_errors(refined, vectors, 16)[3] < 0.93 * prefix_errors(codebooks, vectors, 16)[3]


def test_prefixes_stay_good_codes() -> None:
    vectors = gaussian(2000, 8)
    codebooks = residual_codebooks(vectors, 4, 16, 4, seed=0)
    refined = refine_codebooks(codebooks, vectors, torch.arange(2000) % 4 + 1, 8, rounds=4)
    errors = prefix_errors(refined, vectors, 8)
    assert errors[0] == 1
    assert all(errors[rate + 1] < 0.75 * errors[rate] for rate in range(4))


def problem(columns: int = 12, vectors: int = 6, d: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = gaussian(40, columns, seed=1) @ gaussian(columns, columns, seed=2)
    rates = torch.tensor([3, 2, 1, 0] * (columns // 4))
    codes = torch.randint(5, (columns, vectors, 3), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    output_weights = gaussian(vectors * d, seed=4).square()
    output_weights[-2:] = 0
    return (
        codes,
        rates,
        output_weights,
        inputs.t() @ inputs / 40,
        gaussian(3, 5, d, seed=5),
        gaussian(columns, vectors * d),
    )


def decoded(codes: Tensor, rates: Tensor, codebooks: Tensor) -> Tensor:
    return torch.stack([sum_codewords(codes[j, :, :rate], codebooks).flatten() for j, rate in enumerate(rates)])


def test_refit_solves_the_normal_equations() -> None:
    """Against autograd: at the solution the gradient of the true objective in the codewords vanishes."""
    codes, rates, output_weights, moment, codebooks, target = problem()

    def objective(candidate: Tensor) -> Tensor:
        errors = target - decoded(codes, rates, candidate)
        return (errors * output_weights * (moment @ errors)).sum()

    solver = CodebookProblem(codes, rates, output_weights, SecondMoment(moment))
    refitted = codebooks
    for _ in range(8):
        refitted = solver.refit(refitted, target)
    gradients = []
    for candidate in (codebooks, refitted):
        leaf = candidate.clone().requires_grad_()
        objective(leaf).backward()
        gradients.append(float(leaf.grad.norm()))
    assert objective(refitted) < objective(codebooks)
    assert gradients[1] < 1e-3 * gradients[0]


def test_refit_leaves_a_perfect_fit_and_unused_codewords_alone() -> None:
    codes, rates, output_weights, moment, codebooks, _ = problem()
    codes[codes == 4] = 0
    target = decoded(codes, rates, codebooks)
    for metric in (SecondMoment(moment), None):
        refitted = CodebookProblem(codes, rates, output_weights, metric).refit(codebooks, target)
        torch.testing.assert_close(refitted, codebooks)
