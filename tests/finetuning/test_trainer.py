"""The loop on a toy: it descends, keeps the best state, stops when nothing is gained, and goes on where it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vqcompress.errors import VQCompressError
from vqcompress.finetuning.learnable import make_learnable
from vqcompress.finetuning.trainer import Schedule, Trainer


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)


def trainer(schedule=None, measure=None, **options) -> tuple[Toy, Trainer]:
    torch.manual_seed(0)
    toy = Toy()
    learnable = make_learnable(toy, ["norms"])
    goal = 1 + 0.1 * torch.randn(8, generator=torch.Generator().manual_seed(1))

    def loss() -> torch.Tensor:
        return (toy.norm.weight - goal).square().mean()

    def gradient(step: int) -> float:
        loss().backward()
        return float(loss().detach())

    return toy, Trainer(
        learnable,
        gradient,
        measure or (lambda: float(loss())),
        schedule or Schedule(60, 0.2, measure_every=5),
        **options,
    )


def test_it_descends_and_ends_in_the_best_state():
    _, run = trainer()
    outcome = run.run()
    assert outcome.after < 0.05 * outcome.before
    assert outcome.after == min(loss for _, loss in outcome.history)


def test_a_start_that_nothing_beats_is_kept():
    worse = iter(range(100))
    toy, run = trainer(measure=lambda: float(next(worse)), schedule=Schedule(60, 0.2, measure_every=5, patience=3))
    before = toy.norm.weight.detach().clone()
    outcome = run.run()
    assert (outcome.best_step, outcome.steps) == (0, 15)
    assert torch.equal(toy.norm.weight, before)


def test_a_restored_run_ends_in_the_same_bytes():
    toy, run = trainer()
    states = []
    run.keep, run.keep_seconds = lambda state: states.append({n: t.clone() for n, t in state.items()}), 0.0
    straight = run.run()
    other, resumed = trainer()
    resumed.restore(states[17])
    assert resumed.step == 18
    assert resumed.run() == straight
    assert torch.equal(other.norm.weight, toy.norm.weight)


def test_divergence_is_an_error_and_not_a_result():
    _, run = trainer(measure=lambda: math.nan)
    with pytest.raises(VQCompressError, match="lower the learning rate"):
        run.run()


def test_masters_are_measured_as_they_will_be_stored():
    toy = Toy()
    toy.norm.weight.data.fill_(0.5)
    learnable = make_learnable(toy, ["norms"])
    with torch.no_grad():
        toy.norm.weight += 1e-5
    master = toy.norm.weight.detach().clone()
    with learnable.rounded():
        assert torch.equal(toy.norm.weight, torch.full((8,), 0.5))
    assert torch.equal(toy.norm.weight, master)
    learnable.finalize()
    assert torch.equal(toy.norm.weight, torch.full((8,), 0.5))
    assert not toy.norm.weight.requires_grad


def test_steps_of_a_matrix_shrink_with_the_inputs_that_a_row_adds_up():
    torch.manual_seed(0)
    moved = {}
    for columns in (16, 1024):
        layer = nn.Linear(columns, 8, bias=False)
        nn.init.normal_(layer.weight)
        before, x = layer.weight.detach().clone(), torch.ones(columns)

        def gradient(step: int, layer=layer, x=x) -> float:
            loss = layer(x).sum()
            loss.backward()
            return float(loss.detach())

        learnable = make_learnable(layer, ["dense"])
        Trainer(learnable, gradient, lambda: 1.0, Schedule(1, 0.01, measure_every=2), keep=None).run()
        ends = learnable.parameters["weight"].detach()
        moved[columns] = float(((ends - before) @ x).abs().mean() / columns**0.5)
    assert moved[16] == pytest.approx(moved[1024], rel=0.2)
