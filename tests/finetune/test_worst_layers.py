"""Before the blocks: moments are those of the loss's gradients, and codes made by them gain."""

from __future__ import annotations

import copy
import os
import signal
from dataclasses import replace

import pytest
import torch

from vqcompress.finetune import encode_worst, worst_layers
from vqcompress.finetune.assignment import make_task
from vqcompress.finetune.curvature import SHRINKAGE, loss_moments
from vqcompress.finetune.gradients import backward_projections
from vqcompress.finetune.layer_effects import as_many_as_fit
from vqcompress.finetune.objective import random_projections
from vqcompress.finetune.presets import training_preset
from vqcompress.finetune.worst_layers import CODES, STAGE
from vqcompress.layers import swap
from vqcompress.matrix_view import to_matrix
from vqcompress.quantizers import quantize_weight
from vqcompress.recipe import Calibration, Recipe, Training
from vqcompress.run_store import RunStore

GUIDANCE = 2.0
LINEAR, CONV = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "up_blocks.0.resnets.0.conv1"


@pytest.fixture(scope="session")
def recipe(training) -> Recipe:
    return Recipe(model="tiny", bits=2, training=training)


@pytest.fixture
def task(dense, distillation, training):
    return make_task(dense, distillation, training, GUIDANCE, None, 0)


def slopes(task, name, units, seed=0):
    """What the projections of ``units`` have as gradients in a weight, each by itself, by autograd."""
    batch, weight = task.train.batch(units), task.denoiser.get_submodule(name).weight.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    values = random_projections(
        task._output(batch), batch.branches, GUIDANCE, task.step_config.guided, generator
    )  # fmt: skip
    values = values * (batch.weights / task.signal).sqrt()
    found = [torch.autograd.grad(value, weight, retain_graph=True)[0] for value in values]
    weight.requires_grad_(False)
    return [to_matrix(slope) for slope in found]


@pytest.mark.parametrize("name", [LINEAR, CONV])
def test_units_that_a_layer_keeps_apart_are_told_apart(task, name):
    told = []
    backward_projections(task, {name: lambda inputs, gradients: told.append((inputs, gradients))}, [0, 2, 1], seed=0)
    ((inputs, gradients),) = told
    expected = slopes(task, name, [0, 2, 1])
    assert len(inputs) == 3
    for read, worth, slope in zip(inputs, gradients, expected, strict=True):
        torch.testing.assert_close(worth.t() @ read, slope, rtol=1e-3, atol=1e-3 * float(slope.abs().max()))


@pytest.mark.parametrize("name", [LINEAR, CONV])
def test_moments_are_those_of_the_weight_s_gradients(task, name):
    units = [0, 1, 2]
    (moment,) = loss_moments(task, [name], units, seed=0).values()
    expected = slopes(task, name, units)
    inputs, outputs = sum(s.t() @ s for s in expected), sum(s @ s.t() for s in expected)
    inputs = inputs / inputs.diagonal().mean() + SHRINKAGE * torch.eye(len(inputs))
    torch.testing.assert_close(moment.inputs, inputs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moment.outputs, outputs / outputs.diagonal().mean(), rtol=1e-3, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in task.denoiser.parameters())


def test_packed_layers_have_the_moments_of_their_decoded_weights(dense, distillation, training, quantized):
    decoded = copy.deepcopy(dense)
    with torch.no_grad():
        for name, packed in quantized.items():
            decoded.get_submodule(name).weight.copy_(packed.decode())
    swap(dense, quantized)
    names = [name for name in (LINEAR, CONV) if name in quantized]
    assert names
    first, second = (
        loss_moments(make_task(net, distillation, training, GUIDANCE, None, 0), names, [0, 1], 0)
        for net in (dense, decoded)
    )
    for name in names:
        torch.testing.assert_close(first[name].inputs, second[name].inputs, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(first[name].outputs, second[name].outputs, rtol=1e-3, atol=1e-4)


def test_a_layer_that_mixes_units_gets_them_all_at_once(task):
    """As routed experts do, which see the tokens of all units in one row."""
    layer, told = task.denoiser.get_submodule(LINEAR), []
    forward = layer.forward
    layer.forward = lambda x: forward(x)
    flat = torch.nn.Module()
    flat.inner = layer
    flat.forward = lambda x: layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    task.denoiser.set_submodule(LINEAR, flat)
    use = {f"{LINEAR}.inner": lambda inputs, gradients: told.append((inputs, gradients))}
    backward_projections(task, use, [0, 1], seed=0)
    ((inputs, gradients),) = told
    assert len(inputs) == len(gradients) == 1
    expected = sum(slopes(task, f"{LINEAR}.inner", [0, 1]))
    torch.testing.assert_close(
        gradients[0].t() @ inputs[0], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )


def loss(dense, packed, distillation, training) -> float:
    student = copy.deepcopy(dense)
    swap(student, packed)
    with torch.no_grad():
        return make_task(student, distillation, training, GUIDANCE, None, 0).measure()


@pytest.fixture
def encode(dense, coarse, distillation, recipe):
    def run(folder, changed=None, **options):
        with RunStore(folder, {}) as store:
            return encode_worst(dense, coarse, distillation, changed or recipe, GUIDANCE, None, store, **options)

    return run


def test_new_codes_gain_in_the_bytes_of_the_old(dense, coarse, distillation, training, encode, tmp_path):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    told = []
    found = encode(tmp_path, progress=lambda *step: told.append(step))
    assert found.keys() == coarse.keys()
    changed = [name for name in found if found[name] is not coarse[name]]
    assert changed
    assert {name for name in coarse if coarse[name].bits_per_weight < 2} <= set(changed)
    assert all(found[name].nbytes <= coarse[name].nbytes for name in changed)
    assert [step[1:3] for step in told] == [(n + 1, len(changed)) for n in range(len(changed))]
    assert loss(dense, found, distillation, training) < 0.8 * loss(dense, coarse, distillation, training)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / CODES).iterdir()}
    again = encode(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / CODES).iterdir()} == stamps
    assert all(torch.equal(again[name].tensors["weight"], found[name].tensors["weight"]) for name in changed)
    assert not list((tmp_path / STAGE).glob("moments*"))


def test_a_small_budget_takes_more_passes_and_gives_the_same_codes(encode, recipe, tmp_path, monkeypatch):
    passes = []
    monkeypatch.setattr(
        worst_layers,
        "loss_moments",
        lambda task, names, *rest: passes.append(names) or loss_moments(task, names, *rest),
    )
    wide = encode(tmp_path / "wide")
    assert len(passes) == 1
    small = recipe.model_copy(update={"calibration": Calibration(memory_budget_gb=2e-5)})
    narrow = encode(tmp_path / "narrow", small)
    assert len(passes) > 2
    assert sorted(name for names in passes[1:] for name in names) == sorted(passes[0])
    assert all(torch.equal(narrow[name].tensors["weight"], wide[name].tensors["weight"]) for name in wide)


def test_a_recipe_that_grants_no_new_codes_gets_none(coarse, encode, recipe, tmp_path):
    none = Recipe(model="tiny", training=Training(**{**recipe.training.model_dump(), "recode": 0}))
    assert encode(tmp_path, none) == coarse
    assert not (tmp_path / STAGE).exists()


def test_old_codes_stay_where_new_ones_do_not_gain(coarse, encode, tmp_path, monkeypatch):
    def spoiler(recipe, tries):
        return lambda weight, moment, before: quantize_weight(weight.roll(1, 0), bits=before.bits_per_weight)

    monkeypatch.setattr(worst_layers, "loss_encoder", spoiler)
    found = encode(tmp_path)
    assert all(found[name] is coarse[name] for name in coarse)


def test_a_run_killed_between_two_layers_ends_in_the_same_bytes(encode, tmp_path):
    straight = encode(tmp_path / "straight")
    if (child := os.fork()) == 0:
        encode(tmp_path / "run", progress=lambda *step: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    resumed = encode(tmp_path / "run")
    for name, packed in straight.items():
        assert all(torch.equal(tensor, resumed[name].tensors[key]) for key, tensor in packed.tensors.items())


def test_of_a_large_model_the_worst_that_there_is_time_for(dense, encode, coarse, monkeypatch, tmp_path):
    everything = {name for name, packed in encode(tmp_path / "all").items() if packed is not coarse[name]}
    monkeypatch.setattr(
        worst_layers, "training_preset", lambda training: replace(training_preset(training), encode_weights=3000)
    )
    some = {name for name, packed in encode(tmp_path / "some").items() if packed is not coarse[name]}
    assert some < everything
    assert 0 < sum(dense.get_submodule(name).weight.numel() for name in some) <= 3000


def test_a_layer_too_large_leaves_its_place():
    assert as_many_as_fit(["a", "b", "c", "d"], {"a": 3, "b": 9, "c": 4, "d": 1}, 7) == ["a", "c"]
    assert as_many_as_fit(["a"], {"a": 3}, 2) == []
