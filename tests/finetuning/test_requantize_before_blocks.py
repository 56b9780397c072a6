"""Before the blocks: codes in the metric of the loss gain, in the bytes of the old ones."""

from __future__ import annotations

import copy
import os
import signal
from dataclasses import replace

import pytest
import torch

from vqcompress.finetuning import requantize_before_blocks
from vqcompress.finetuning.requantize import CODES, WORST, as_many_as_fit
from vqcompress.finetuning.task import make_task
from vqcompress.layers import swap
from vqcompress.quantizers import quantize_weight
from vqcompress.recipe import Calibration, Recipe, Training
from vqcompress.run_store import RunStore


@pytest.fixture(scope="session")
def recipe(training) -> Recipe:
    return Recipe(model="tiny", bits=2, training=training)


@pytest.fixture
def loss(dense, context):
    """The held-out loss with some layers packed."""

    def measure(packed) -> float:
        student = copy.deepcopy(dense)
        swap(student, packed)
        with torch.no_grad():
            return make_task(student, context()).measure()

    return measure


@pytest.fixture
def run(dense, coarse, context, recipe):
    """``run(folder)`` is a run that keeps its work there."""

    def go(folder, changed=None, encode=None, store=RunStore, preset=None, **changes):
        with store(folder, {}) as opened:
            made = context(opened, changed or recipe, **changes)
            made = replace(made, preset=replace(made.preset, **(preset or {})))
            return requantize_before_blocks(dense, coarse, made, encode)

    return go


def test_new_codes_gain_in_the_bytes_of_the_old(dense, coarse, loss, run, tmp_path):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    reported = []
    found = run(tmp_path, progress=lambda *step: reported.append(step))
    assert found.keys() == coarse.keys()
    changed = [name for name in found if found[name] is not coarse[name]]
    assert changed
    assert {name for name in coarse if coarse[name].bits_per_weight < 2} <= set(changed)
    assert all(found[name].nbytes <= coarse[name].nbytes for name in changed)
    assert [step[1:3] for step in reported] == [(n + 1, len(changed)) for n in range(len(changed))]
    assert loss(found) < 0.8 * loss(coarse)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / CODES).iterdir()}
    again = run(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / CODES).iterdir()} == stamps
    assert all(torch.equal(again[name].tensors["weight"], found[name].tensors["weight"]) for name in changed)
    assert not list((tmp_path / WORST).glob("moments*"))


def test_a_small_budget_takes_more_passes_and_gives_the_same_codes(run, recipe, tmp_path):
    passes = []

    class Listening(RunStore):
        def load_or_make(self, stage, key, make):
            tensors = super().load_or_make(stage, key, make)
            if key.startswith("moments"):
                passes.append(sorted({name.split()[0] for name in tensors}))
            return tensors

    wide = run(tmp_path / "wide", store=Listening)
    assert len(passes) == 1
    small = recipe.model_copy(update={"calibration": Calibration(memory_budget_gb=2e-5)})
    narrow = run(tmp_path / "narrow", small, store=Listening)
    assert len(passes) > 2
    assert sorted(name for names in passes[1:] for name in names) == passes[0]
    assert all(torch.equal(narrow[name].tensors["weight"], wide[name].tensors["weight"]) for name in wide)


def test_a_recipe_that_grants_no_new_codes_gets_none(coarse, run, recipe, tmp_path):
    none = Recipe(model="tiny", training=Training(**{**recipe.training.model_dump(), "requantize": 0}))
    assert run(tmp_path, none) == coarse
    assert not (tmp_path / WORST).exists()


def test_old_codes_stay_where_new_ones_do_not_gain(coarse, run, tmp_path):
    def spoil(weight, moment, before):
        return quantize_weight(weight.roll(1, 0), bits=before.bits_per_weight)

    found = run(tmp_path, encode=spoil)
    assert all(found[name] is coarse[name] for name in coarse)


def test_a_run_killed_between_two_layers_ends_in_the_same_bytes(run, tmp_path):
    straight = run(tmp_path / "straight")
    if (child := os.fork()) == 0:
        run(tmp_path / "run", progress=lambda *step: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    resumed = run(tmp_path / "run")
    for name, packed in straight.items():
        assert all(torch.equal(tensor, resumed[name].tensors[key]) for key, tensor in packed.tensors.items())


def test_of_a_large_model_the_worst_that_there_is_time_for(dense, run, coarse, tmp_path):
    everything = {name for name, packed in run(tmp_path / "all").items() if packed is not coarse[name]}
    few = run(tmp_path / "few", preset={"encode_weights": 3000})
    some = {name for name, packed in few.items() if packed is not coarse[name]}
    assert some < everything
    assert 0 < sum(dense.get_submodule(name).weight.numel() for name in some) <= 3000


def test_a_layer_that_is_too_large_is_skipped():
    assert as_many_as_fit(["a", "b", "c", "d"], {"a": 3, "b": 9, "c": 4, "d": 1}, 7) == ["a", "c"]
    assert as_many_as_fit(["a"], {"a": 3}, 2) == []
