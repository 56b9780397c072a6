"""The whole denoiser learns from recorded outputs: it gets better, its codes stay, and a killed run ends the same."""

from __future__ import annotations

import copy
import os
import signal

import pytest
import torch

from vqcompress.errors import ArchitectureError, RecipeError
from vqcompress.finetuning import tune_whole
from vqcompress.finetuning.learnable import make_learnable, tensors_of
from vqcompress.finetuning.task import WholeDenoiser, make_task, weighted
from vqcompress.finetuning.whole_stage import STATES
from vqcompress.recipe import Recipe, Training
from vqcompress.run_store import RunStore


def recipe_with(training, **changes) -> Recipe:
    return Recipe(model="tiny", training=Training(**{**training.model_dump(), **changes}))


def test_it_gets_better_on_held_out_prompts_and_codes_stay(student, context, codes_of):
    before = codes_of(student)
    outcome = tune_whole(student, context())
    assert outcome.after < 0.95 * outcome.before
    after = codes_of(student)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(not p.requires_grad for p in student.parameters())


def test_what_was_measured_is_what_is_stored(student, context):
    outcome = tune_whole(student, context())
    with torch.no_grad():
        again = make_task(student, context()).measure()
    assert again == outcome.after
    for name, tensor in tensors_of(student).items():
        assert tensor.dtype == torch.float16 or torch.equal(tensor.half().float(), tensor), name


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(student, context, tmp_path):
    copies = [copy.deepcopy(student) for _ in range(2)]
    straight = tune_whole(student, context())

    child = os.fork()
    if child == 0:  # dies by SIGKILL at the seventh step, with states kept after every step

        def stop(stage, done, total, what):
            if done >= 7:
                os.kill(os.getpid(), signal.SIGKILL)

        with RunStore(tmp_path / "run", {}) as store:
            tune_whole(copies[0], context(store, progress=stop), keep_seconds=0.0)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL

    assert list((tmp_path / "run" / STATES).glob("*.safetensors"))
    with RunStore(tmp_path / "run", {}) as store:
        resumed = tune_whole(copies[1], context(store))
    assert resumed == straight
    expected = tensors_of(student)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors_of(copies[1]).items())


def test_a_dense_model_and_an_unknown_group_are_refused(dense, context):
    with pytest.raises(ArchitectureError, match="no packed layers"):
        tune_whole(dense, context())
    with pytest.raises(RecipeError, match="'codes'"):
        make_learnable(dense, ["codes"])


@pytest.mark.parametrize(
    "changes",
    [
        {"weighting": "min-snr"},
        {"weighting": "measured"},
        {"weighting": "trajectory"},
        {"guided": 1.0},
        {"dtype": "bfloat16"},
    ],
)
def test_every_objective_runs(student, context, training, teacher, changes):
    short = recipe_with(training, steps=3, **changes)
    outcome = tune_whole(student, context(recipe=short, scheduler=teacher.scheduler))
    assert outcome.after <= outcome.before


def test_timesteps_weigh_by_trajectory_where_the_scheduler_has_noise_levels(
    student, distillation, context, training, teacher
):
    found = {}
    for weighting, scheduler in ((None, teacher.scheduler), ("trajectory", teacher.scheduler), (None, None)):
        chosen = context(recipe=recipe_with(training, weighting=weighting), scheduler=scheduler)
        found[weighting, scheduler] = weighted(student, chosen).train.weights
    assert torch.equal(found[None, teacher.scheduler], found["trajectory", teacher.scheduler])
    assert torch.equal(found[None, None], torch.ones(len(distillation.train)))
    assert found[None, teacher.scheduler].std() > 0.1


def test_checkpointing_changes_memory_and_not_the_gradient(student, context):
    learnable = make_learnable(student)
    task = make_task(student, context())
    task.gradient(0)
    plain = {name: p.grad.clone() for name, p in learnable.parameters.items() if p.grad is not None}
    student.zero_grad()
    student.enable_gradient_checkpointing()
    task.gradient(0)
    for name, gradient in plain.items():
        torch.testing.assert_close(learnable.parameters[name].grad, gradient)


def test_micro_batches_add_up(student, context, training):
    learnable = make_learnable(student)
    found = []
    for micro in (1, 4):
        loss = make_task(student, context(recipe=recipe_with(training, micro_batch=micro))).gradient(0)
        found.append((loss, {n: p.grad.clone() for n, p in learnable.parameters.items() if p.grad is not None}))
        student.zero_grad()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, gradient in found[0][1].items():
        scale = float(gradient.abs().max()) + 1e-12
        torch.testing.assert_close(gradient / scale, found[1][1][name] / scale, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("guided", [0.0, 1.0])
def test_an_output_of_zeros_has_a_loss_of_one(student, context, training, teacher, guided):
    chosen = context(recipe=recipe_with(training, guided=guided, weighting="trajectory"), scheduler=teacher.scheduler)
    data = weighted(student, chosen)
    for parameter in (student.conv_out.weight, student.conv_out.bias):
        parameter.data.zero_()
    with torch.no_grad():
        assert WholeDenoiser(student, data, chosen.step_config).measure() == pytest.approx(1.0, rel=1e-4)
