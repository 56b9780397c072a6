"""What a dry run computes: operations by hand, speeds that are given, and the one change that helps most."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from vqcompress.estimate import estimate
from vqcompress.placement import Placement
from vqcompress.recipe import Recipe
from vqcompress.sampling_config import ResolvedSampling
from vqcompress.stages.forecast import Call, Needs, Speed, Work, advice, samples_of_a_call
from vqcompress.working_memory import usable_cores

SAMPLING = ResolvedSampling(steps=10, guidance=5.0, height=1024, width=1024)
RECIPE = Recipe.parse({"model": "m", "calibration": {"count": 4, "batch_size": 2, "rows_per_call": 100}})
CALL = Call(weights=1_000_000, samples=500.0)


def test_operations_by_hand() -> None:
    work = Work.of(replace_budget("layer"), SAMPLING, CALL, [10, 20], 1, search=6.0)
    assert work.calls == 4 * 10 * 2 * 1e9  # prompts, steps, guidance branches
    assert work.moments == (10**2 + 20**2) * 100 * 2 * 10  # columns, samples a call, batches, steps
    assert work.factors == pytest.approx(2 * 4 / 3 * (10**3 + 20**3))
    assert Work.of(replace_budget("model"), SAMPLING, CALL, [10], 1, 0).calls == (4 + 8 * 6) * 2e10
    assert Work.of(replace_budget("model"), SAMPLING, CALL, [10], 3, 0).calls == (3 * 4 + 8 * 6) * 2e10
    assert Work.of(replace_budget("layer"), replace(SAMPLING, guidance=1.0), CALL, [], 0, 0).calls == 0


def test_small_maps_give_fewer_rows_than_the_most_that_are_multiplied() -> None:
    """A weight of `shapes` sees 5 positions of an image on average: 85 rows of a call for 8 of them."""
    few = Work.of(replace_budget("layer"), SAMPLING, replace(CALL, samples=5.0), [10], 1, 0)
    assert few.moments == 10**2 * (2 * 2 * 5.0) * 2 * 10  # batch, branches, positions; batches, steps
    calibration = RECIPE.calibration.model_copy(update={"rows_per_call": None})
    unlimited = RECIPE.model_copy(update={"budget": "layer", "calibration": calibration})
    assert Work.of(unlimited, SAMPLING, CALL, [10], 1, 0).moments == 10**2 * (2 * 2 * 500.0) * 2 * 10


def replace_budget(budget: str) -> Recipe:
    return RECIPE.model_copy(update={"budget": budget})


def test_seconds_are_operations_by_speed_and_codes_are_searched_on_the_host() -> None:
    work = Work(calls=8e3, moments=6e3, factors=4e3, tuning=2e3, search=6.0)
    there, here = Speed(product=4e3, single=2e3, double=0.0), Speed(1e3, 1e3, 5e2)
    expected = {"calibration": 2 + 3, "encoding": 6 / usable_cores() + 8, "fine-tuning": 0.5}
    assert work.seconds(there, here) == pytest.approx(expected)


def test_a_call_of_sdxl_has_the_operations_that_are_known_of_it() -> None:
    """6 TFLOP for one image of 1024 pixels, counted layer by layer; the estimate knows only the weights."""
    pipeline = SimpleNamespace(vae_scale_factor=8, unet=SimpleNamespace(config={}))
    assert 0.7 < 2 * 2.567e9 * samples_of_a_call(pipeline, "unet", SAMPLING) / 5.98e12 < 1.4


@pytest.mark.parametrize(
    ("config", "tokens"), [({"patch_size": 2}, 4096), ({"patch_size": 1, "in_channels": 64}, 4096), ({}, 4096)]
)
def test_a_transformers_weights_see_its_tokens(config: dict[str, int], tokens: int) -> None:
    pipeline = SimpleNamespace(vae_scale_factor=8, transformer=SimpleNamespace(config=config))
    assert samples_of_a_call(pipeline, "transformer", SAMPLING) == tokens


@pytest.mark.parametrize(
    ("needs", "word"),
    [
        (Needs(1, 1, 1), None),
        (Needs(10, 1, 1), "--offload group"),
        (Needs(10, 10, 10), "--offload group"),
        (Needs(1, 10, 10), "--memory-budget"),
        (Needs(1, 1, 10), "--calibration"),
    ],
)
def test_advice_is_on_what_does_not_fit(needs: Needs, word: str | None) -> None:
    found = advice(needs, Needs(10, 10, 10), Placement(torch.device("cuda:0"), offload="none"))
    assert found is None if word is None else word in str(found)


def test_a_dry_run_names_the_device_and_times_on_it() -> None:
    found = estimate("dit-s-2", Recipe.parse({"model": "dit-s-2", "method": "rtn"}), Placement.parse("cpu"))["forecast"]
    assert found["device"]["device"] == "cpu"
    assert found["device"]["free"] == found["free"]["host"] > 0
    assert found["seconds"]["cpu"]["encoding"] > 0
    assert found["needs"]["device"] == 0
    assert found["needs"]["disk"] > 0
