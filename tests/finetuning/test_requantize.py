"""The layers that contribute most to the loss get new codes: the right ones, better ones, and the same after a kill."""

from __future__ import annotations

import copy
import os
import signal
from dataclasses import replace

import pytest
import torch

from vqcompress.finetuning import plan_requantization, tune_whole
from vqcompress.finetuning.curvature import loss_contributions
from vqcompress.finetuning.requantize import packed_errors
from vqcompress.finetuning.task import make_task
from vqcompress.layers import swap, vq_layers
from vqcompress.quantizers import quantize_weight
from vqcompress.recipe import Recipe, Training
from vqcompress.run_store import RunStore
from vqcompress.workers import Workers


@pytest.fixture
def student(dense, coarse):
    swap(dense, coarse)
    return dense


@pytest.fixture(scope="session")
def recipe(training) -> Recipe:
    return Recipe(model="tiny", bits=2, training=Training(**{**training.model_dump(), "requantize": 2, "steps": 4}))


@pytest.fixture
def run(context, recipe):
    """``run(store)`` is the context of a run by ``recipe``."""
    return lambda store=None, **changes: context(store, recipe, **changes)


def planned(student, teacher, context):
    return plan_requantization(student, lambda: teacher.unet, context)


def test_contributions_are_what_each_layer_alone_adds_to_the_loss(teacher, distillation, context, quantized):
    names = sorted(quantized, key=lambda name: teacher.unet.get_submodule(name).weight.numel())[-2:]
    packed = {name: quantize_weight(teacher.unet.get_submodule(name).weight, method="rtn", bits=6) for name in names}

    def task_with(layers):
        student = copy.deepcopy(teacher.unet)
        swap(student, layers)
        return make_task(student, context())

    samples = list(range(len(distillation.train)))
    student = task_with(packed)
    found = loss_contributions(student, packed_errors(student.denoiser, teacher.unet), samples * 40, seed=0)
    for name in names:
        task = task_with({name: packed[name]})
        with torch.no_grad():
            batch = task.train.batch(samples)
            alone = float((task.losses(batch) * batch.weights).mean() / task.signal)
        assert found[name] == pytest.approx(alone, rel=0.25)


def test_the_worst_layers_are_chosen(student, teacher, run, coarse):
    context = run()
    requantization = planned(student, teacher, context)
    assert len(requantization.originals) <= 2
    assert all(coarse[name].bits_per_weight < 2 for name in requantization.originals)
    for name, weight in requantization.originals.items():
        assert torch.equal(weight, teacher.unet.get_submodule(name).weight)
    again = plan_requantization(student, lambda: pytest.fail("asked again"), context)
    assert list(again.originals) == list(requantization.originals)


def test_no_layer_is_chosen_when_none_is_granted(student, context, recipe):
    none = Recipe(model="tiny", training=Training(**{**recipe.training.model_dump(), "requantize": 0}))
    assert plan_requantization(student, lambda: pytest.fail("asked"), context(recipe=none)) is None


def test_new_codes_gain_and_take_no_more_room(student, teacher, coarse, run, codes_of):
    before, context = codes_of(student), run()
    plain = tune_whole(copy.deepcopy(student), run())
    requantization = planned(student, teacher, context)
    outcome = tune_whole(student, context, requantization)
    assert outcome.before == pytest.approx(plain.before, rel=1e-6)
    assert outcome.after < 0.9 * plain.after
    changed = {name.rpartition(".")[0] for name, code in codes_of(student).items() if not same(code, before[name])}
    assert changed
    assert changed <= set(requantization.originals)
    layers = vq_layers(student)
    assert all(layers[name].quantized_weight().nbytes <= coarse[name].nbytes for name in changed)
    described = student.config["quantization_config"]["layers"]
    assert all(described[name]["code_bytes"] == layers[name].spec.code_bytes for name in changed)
    assert all(not p.requires_grad for p in student.parameters())


def test_old_codes_come_back_when_new_ones_do_not_gain(student, teacher, run):
    expected, context = copy.deepcopy(student), run()
    plain = tune_whole(expected, run())

    def spoil(weight, moment, before):
        return quantize_weight(torch.zeros_like(weight) + weight.roll(1, 0), bits=before.bits_per_weight)

    outcome = tune_whole(student, context, replace(planned(student, teacher, context), encode=spoil))
    assert outcome == plain
    found, wanted = student.state_dict(), expected.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_layer_that_cannot_be_encoded_again_keeps_its_codes(student, teacher, run, codes_of):
    before, context = codes_of(student), run()
    requantization = replace(planned(student, teacher, context), encode=lambda weight, moment, before: before)
    outcome = tune_whole(student, context, requantization)
    assert outcome.after < outcome.before
    assert all(torch.equal(code, before[name]) for name, code in codes_of(student).items())


def test_a_run_killed_between_two_layers_ends_in_the_same_bytes(student, teacher, run, tmp_path):
    copies = [copy.deepcopy(student) for _ in range(2)]
    context = run()
    straight = tune_whole(student, context, planned(student, teacher, context))

    child = os.fork()
    if child == 0:

        def stop(stage, done, total, what):
            os.kill(os.getpid(), signal.SIGKILL)

        with RunStore(tmp_path / "run", {}) as store:
            context = run(store, progress=stop)
            tune_whole(copies[0], context, planned(copies[0], teacher, context))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL

    with RunStore(tmp_path / "run", {}) as store:
        context = run(store)
        resumed = tune_whole(copies[1], context, planned(copies[1], teacher, context))
    assert resumed == straight
    expected = student.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in copies[1].state_dict().items())


def test_two_ranks_end_with_the_same_codes(student, teacher, run, tmp_path, in_two_ranks):
    RunStore(tmp_path, {}).close()

    def work(workers: Workers) -> None:
        denoiser = copy.deepcopy(student)
        context = run(RunStore(tmp_path, {}, joins=not workers.is_main_process), workers=workers)
        outcome = tune_whole(denoiser, context, planned(denoiser, teacher, context))
        assert outcome.after < 0.9 * outcome.before
        torch.save(denoiser.state_dict(), tmp_path / f"rank{workers.rank}.pt")

    assert in_two_ranks(work)() == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
