"""The layers that do the most harm get new codes: the right ones, better ones, and the same after a kill."""

from __future__ import annotations

import copy
import os
import signal
from dataclasses import replace

import pytest
import torch

from vqcompress.finetune import open_requantization, plan_requantization, tune_whole
from vqcompress.finetune.assignment import make_task, widen
from vqcompress.finetune.layer_effects import layer_effects, packed_errors
from vqcompress.layers import swap, vq_layers
from vqcompress.quantizers import quantize_weight
from vqcompress.recipe import Recipe, Training
from vqcompress.run_store import RunStore
from vqcompress.workers import Workers

GUIDANCE = 2.0


@pytest.fixture
def student(dense, coarse):
    swap(dense, coarse)
    return dense


@pytest.fixture(scope="session")
def recipe(training) -> Recipe:
    return Recipe(model="tiny", bits=2, training=Training(**{**training.model_dump(), "recode": 2, "steps": 4}))


@pytest.fixture
def tune(distillation, recipe):
    def run(student, folder, store, requantization, **options):
        return tune_whole(
            student,
            distillation,
            folder,
            store,
            training=recipe.training,
            guidance=GUIDANCE,
            requantization=requantization,
            **options,
        )

    return run


def planned(student, teacher, distillation, recipe, store):
    return plan_requantization(student, lambda: teacher.unet, distillation, recipe, GUIDANCE, None, store)


def test_effects_are_what_each_layer_alone_adds_to_the_loss(teacher, dense, distillation, training, quantized):
    names = sorted(quantized, key=lambda name: teacher.unet.get_submodule(name).weight.numel())[-2:]
    packed = {name: quantize_weight(teacher.unet.get_submodule(name).weight, method="rtn", bits=6) for name in names}

    def task_with(layers):
        student = copy.deepcopy(teacher.unet)
        swap(student, layers)
        widen(student, training)
        return make_task(student, distillation, training, GUIDANCE, None, 0)

    units = list(range(len(distillation.train)))
    student = task_with(packed)
    effects = layer_effects(student, packed_errors(student.denoiser, teacher.unet), units * 40, seed=0)
    for name in names:
        task = task_with({name: packed[name]})
        with torch.no_grad():
            batch = task.train.batch(units)
            alone = float((task._losses(batch) * batch.weights).mean() / task.signal)
        assert effects[name] == pytest.approx(alone, rel=0.25)


def test_the_worst_layers_are_chosen(student, teacher, distillation, recipe, coarse, tmp_path):
    with RunStore(tmp_path, {}) as store:
        requantization = planned(student, teacher, distillation, recipe, store)
    assert len(requantization.originals) <= 2
    assert all(coarse[name].bits_per_weight < 2 for name in requantization.originals)
    for name, weight in requantization.originals.items():
        assert torch.equal(weight, teacher.unet.get_submodule(name).weight)
    assert list(open_requantization(tmp_path, recipe).originals) == list(requantization.originals)


def test_no_layer_is_chosen_when_none_is_granted(student, distillation, recipe, tmp_path):
    none = Recipe(model="tiny", training=Training(**{**recipe.training.model_dump(), "recode": 0}))
    with RunStore(tmp_path, {}) as store:
        assert (
            plan_requantization(student, lambda: pytest.fail("asked"), distillation, none, GUIDANCE, None, store)
            is None
        )
    assert open_requantization(tmp_path, none) is None


def test_new_codes_gain_and_take_no_more_room(student, teacher, distillation, recipe, coarse, tune, tmp_path, codes_of):
    before = codes_of(student)
    plain = tune(copy.deepcopy(student), tmp_path / "none", None, None)
    with RunStore(tmp_path / "run", {}) as store:
        requantization = planned(student, teacher, distillation, recipe, store)
        outcome = tune(student, tmp_path / "run", store, requantization)
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


def test_old_codes_come_back_when_new_ones_do_not_gain(student, teacher, distillation, recipe, tune, tmp_path):
    expected = copy.deepcopy(student)
    plain = tune(expected, tmp_path / "none", None, None)
    with RunStore(tmp_path / "run", {}) as store:
        requantization = planned(student, teacher, distillation, recipe, store)

        def spoil(weight, moment, before):
            return quantize_weight(torch.zeros_like(weight) + weight.roll(1, 0), bits=before.bits_per_weight)

        outcome = tune(student, tmp_path / "run", store, replace(requantization, encode=spoil))
    assert outcome == plain
    found, wanted = student.state_dict(), expected.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_layer_that_cannot_be_encoded_again_keeps_its_codes(
    student, teacher, distillation, recipe, tune, tmp_path, codes_of
):
    before = codes_of(student)
    with RunStore(tmp_path, {}) as store:
        requantization = planned(student, teacher, distillation, recipe, store)

        outcome = tune(student, tmp_path, store, replace(requantization, encode=lambda weight, moment, before: before))
    assert outcome.after < outcome.before
    assert all(torch.equal(code, before[name]) for name, code in codes_of(student).items())


def test_a_run_killed_between_two_layers_ends_in_the_same_bytes(student, teacher, distillation, recipe, tune, tmp_path):
    copies = [copy.deepcopy(student) for _ in range(2)]
    with RunStore(tmp_path / "straight", {}) as store:
        straight = tune(student, store.folder, store, planned(student, teacher, distillation, recipe, store))

    child = os.fork()
    if child == 0:

        def stop(stage, done, total, what):
            os.kill(os.getpid(), signal.SIGKILL)

        with RunStore(tmp_path / "run", {}) as store:
            tune(
                copies[0], store.folder, store, planned(copies[0], teacher, distillation, recipe, store), progress=stop
            )
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL

    with RunStore(tmp_path / "run", {}) as store:
        resumed = tune(copies[1], store.folder, store, planned(copies[1], teacher, distillation, recipe, store))
    assert resumed == straight
    expected = student.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in copies[1].state_dict().items())


def test_two_ranks_end_with_the_same_codes(student, teacher, distillation, recipe, tune, tmp_path, in_two_ranks):
    with RunStore(tmp_path, {}) as store:
        planned(student, teacher, distillation, recipe, store)

    def work(workers: Workers) -> None:
        denoiser, store = copy.deepcopy(student), RunStore(tmp_path, {}) if workers.is_main_process else None
        outcome = tune(denoiser, tmp_path, store, open_requantization(tmp_path, recipe), workers=workers)
        assert outcome.after < 0.9 * outcome.before
        torch.save(denoiser.state_dict(), tmp_path / f"rank{workers.rank}.pt")

    assert in_two_ranks(work)() == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
