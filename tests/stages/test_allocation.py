"""Allocation where guidance decides, and the check that keeps an allocation from being worse than none."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor

import vqcompress
from tests.denoiser_calls.toy_sampler import ToyArchitecture, ToyDenoiser
from vqcompress.calibration.importance import layer_importance
from vqcompress.calibration.trajectory_importance import trajectory_costs
from vqcompress.calibration.weight_errors import weight_errors
from vqcompress.checkpoint import read_layer_table
from vqcompress.denoiser_calls.record import record_teacher
from vqcompress.denoiser_calls.sampler_steps import record_trajectory
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.disk import FileMemory
from vqcompress.errors import RecipeError
from vqcompress.layers import vq_layers
from vqcompress.matrix_view import to_matrix
from vqcompress.quantizers import settings_for
from vqcompress.quantizers.bit_allocation import LayerCost, allocate_bits, joint_importance
from vqcompress.quantizers.coded_noise import coded_noise, column_errors
from vqcompress.recipe import Recipe
from vqcompress.stages import allocation_check
from vqcompress.stages.importance import drawn_errors
from vqcompress.stages.scalar_budget import nominal_bits

CALIBRATION = {"count": 4, "steps": 2, "height": 16, "width": 16, "batch_size": 2}
FEW = {r"^(?!up_blocks\.1)": "not in this test"}  # enough layers for bits to differ
RECIPE: dict[str, Any] = {"bits": 3.0, "settings": {"state_bits": 8}, "calibration": CALIBRATION}


class Guided(ToyDenoiser):
    """A wide layer that both branches read alike, where guidance cancels its error, and one that only tells branches
    apart, where guidance multiplies it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.common, self.text = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
        self.shared = torch.nn.Conv2d(4, 4, 1)

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        time = torch.cos(torch.arange(6) * (0.1 + timestep / 1000))[None].expand(len(sample), -1)
        level = (1.4 * self.common(time) + self.text(condition))[:, :, None, None]
        return (torch.tanh(self.shared(sample) + level),)


def toy_run(prompts: range) -> SamplingRun:
    architecture = ToyArchitecture(EulerDiscreteScheduler(prediction_type="v_prediction"), guidance=7.0)
    return SamplingRun(Guided(), architecture, tuple(map(str, prompts)), prompts.start, batch_size=8)  # type: ignore[arg-type]


def costs_of(denoiser: torch.nn.Module, names: list[str]) -> dict[str, LayerCost]:
    weights = {name: to_matrix(denoiser.get_submodule(name).weight.detach()) for name in names}
    return {
        name: LayerCost(len(weight), torch.ones(weight.shape[1]), weight.square().mean().expand(weight.shape[1]), 1.0)
        for name, weight in weights.items()
    }


def draws(costs: Mapping[str, LayerCost], count: int | None, denoiser: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """Errors of every layer at 3 bits: of ``count`` rows, or of the whole weight."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: coded_noise(None, column_errors(cost, 3.0), count or cost.outputs, generator).reshape(
            count or cost.outputs, *denoiser.get_submodule(name).weight.shape[1:]
        )
        for name, cost in costs.items()
    }


def test_bits_follow_what_guidance_does_to_held_out_images() -> None:
    """With calls taken one by one, allocated bits lose images against the same bits everywhere; along trajectories
    they win."""
    run, names = toy_run(range(8)), ["common", "text", "shared"]
    denoiser, costs = run.pipeline, costs_of(run.pipeline, names)
    calls = [call["kwargs"] for call in record_teacher(run, count=6)]
    output = layer_importance(denoiser, names, calls, seed=0)
    left = {name: cost.outputs * float(column_errors(cost, 3.0).sum()) for name, cost in costs.items()}
    images = []
    for index in range(8):
        trajectory = record_trajectory(run, index)
        assert trajectory is not None
        images.append(trajectory_costs(denoiser, trajectory, draws(costs, 32, denoiser, 1), seed=index))
    importance = {"calls": output, "both": joint_importance(output, images, left)}
    held_out = toy_run(range(100, 116))
    originals = torch.cat([held_out.batch(index) for index in range(2)])

    def distance(bits: Mapping[str, float]) -> float:
        """Mean logarithm of the images' squared errors, over 16 held-out prompts and 12 draws of noise."""
        sizes = {name: cost.outputs * float(column_errors(cost, bits[name]).sum()) for name, cost in costs.items()}
        factors = {name: (sizes[name] / left[name]) ** 0.5 for name in names}
        total = 0.0
        for seed in range(12):
            with weight_errors(held_out.pipeline, draws(costs, None, denoiser, 10 + seed), factors):
                found = torch.cat([held_out.batch(index) for index in range(2)])
            total += float((found - originals).square().flatten(1).mean(1).log10().mean())
        return total / 12

    measured = {"uniform": distance(dict.fromkeys(names, 3.0))}
    for name, each in importance.items():
        known = {layer: replace(cost, importance=each[layer], dense_bits=1e9) for layer, cost in costs.items()}
        measured[name] = distance(allocate_bits(known, 3.0))
    assert measured["calls"] > measured["uniform"] + 0.05  # 10 of it are a decibel
    assert measured["both"] < measured["uniform"] - 0.01


def test_joint_importance_is_half_of_each() -> None:
    output, left = {"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 2.0}
    images = [{"a": 9.0, "b": 1.0}, {"a": 700.0, "b": 300.0}]
    joint = joint_importance(output, images, left)
    # All layers cost the output 8; the images' shares are 0.8 and 0.2.
    assert joint == {"a": pytest.approx((1 + 8 * 0.8 / 2) / 2), "b": pytest.approx((3 + 8 * 0.2 / 2) / 2)}
    assert joint_importance(output, [], left) == output


class OneWeight:
    """What `drawn_errors` asks of a run, for one layer with white inputs."""

    recipe = Recipe(model="none", seed=3)

    def weight(self, component: str, layer: str) -> Tensor:
        return torch.randn(64, 256, generator=torch.Generator().manual_seed(0))

    def shape(self, component: str, layer: str) -> tuple[int, ...]:
        return 64, 256


def test_the_check_draws_other_noise_of_the_same_size() -> None:
    def draw(salt: str) -> tuple[Tensor, float]:
        ((_, errors, cost),) = drawn_errors(OneWeight(), "unet", ["layer"], {}, salt=salt)  # type: ignore[arg-type]
        return errors.flatten(), cost

    (importance, cost), (check, same_cost), (again, _) = draw(""), draw("check"), draw("check")
    assert torch.equal(check, again)
    assert cost == same_cost == pytest.approx(float(check.square().sum()), rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([importance, check]))[0, 1])) < 5 / len(check) ** 0.5


@pytest.fixture(scope="module")
def calibrated(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A calibration folder, and the bits that it allocates."""
    folder = tmp_path_factory.mktemp("calibrated")
    out = vqcompress.quantize(str(tiny_sdxl), folder / "out", calibration_folder=folder / "calibration", **RECIPE)
    return folder / "calibration", {row.layer: row.bits for row in read_layer_table(out)}


def test_an_allocation_that_loses_on_held_out_prompts_is_given_up(
    tiny_sdxl: Path, calibrated: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """Planted: importance the wrong way round, as a wrong estimate would have it."""
    kept, right = calibrated
    calibration = Path(shutil.copytree(kept, tmp_path / "calibration"))
    assert max(right.values()) - min(right.values()) > 0.5
    for path in [calibration / "unet.importance" / "all.json", *(calibration / "unet.trajectories").glob("[0-9].json")]:
        found = json.loads(path.read_text())
        path.write_text(json.dumps({name: 1 / max(value, 1e-12) for name, value in found.items()}) + "\n")
    said: list[str] = []
    out = vqcompress.quantize(
        str(tiny_sdxl), tmp_path / "out", calibration_folder=calibration,
        progress=lambda stage, done, total, detail: said.append(detail), **RECIPE,
    )  # fmt: skip
    bits = [row.bits for row in read_layer_table(out)]
    assert max(bits) - min(bits) < 0.3
    assert any(line.startswith("the same bits in every layer: images") for line in said)


@pytest.mark.parametrize("full", [False, True])
def test_noise_of_a_large_denoiser_lies_on_the_disk_if_that_has_room(
    tiny_sdxl: Path, calibrated: tuple[Path, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    full: bool,
) -> None:  # fmt: skip
    kept, bits = calibrated
    asked: list[int] = []

    class Counted(FileMemory):
        def __init__(self, nbytes: int, folder: Path) -> None:
            asked.append(nbytes)
            if full:
                raise OSError(errno.ENOSPC, "no space")
            super().__init__(nbytes, folder)

    monkeypatch.setattr(allocation_check, "LARGE", 0)
    monkeypatch.setattr(allocation_check, "FileMemory", Counted)
    calibration = shutil.copytree(kept, tmp_path / "calibration")
    out = vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", calibration_folder=calibration, **RECIPE)
    assert {row.layer: row.bits for row in read_layer_table(out)} == bits
    (nbytes,) = asked
    assert nbytes > 4 * sum(layer.dense_weight().numel() for layer in vq_layers(vqcompress.load(out).unet).values())


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_fraction_of_a_bit_is_a_budget_for_scalar_codes(tiny_sdxl: Path, tmp_path: Path, method: str) -> None:
    """What all layers store is what 2.5 bits would take at the method's own group size, and not much less."""
    recipe = {**RECIPE, "method": method, "settings": {}, "budget": "model", "bits": 2.5, "ignore": FEW}
    out = vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", **recipe)
    unet = UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet")
    shapes = {row.layer: to_matrix(unet.get_submodule(row.layer).weight).shape for row in read_layer_table(out)}
    wanted = sum(nominal_bits(2.5, settings_for(method, {}), *shape) * math.prod(shape) for shape in shapes.values())
    stored = sum(row.bits * math.prod(shapes[row.layer]) for row in read_layer_table(out))
    assert 0.97 * wanted < stored <= wanted
    described = json.loads((out / "unet" / "config.json").read_text())["quantization_config"]["layers"].values()
    assert len({(spec["bits"], spec["group_size"]) for spec in described}) > 2


def test_a_fraction_in_every_layer_is_refused() -> None:
    with pytest.raises(RecipeError, match="budget 'model'"):
        Recipe.parse({"model": "m", "method": "gptq", "bits": 2.5})
