"""Nothing leaks: prompts of calibration, training, early stopping and evaluation are disjoint."""

from __future__ import annotations

import pytest

from vqcompress.calibration.prompts import choose_diverse, load_prompts
from vqcompress.errors import CalibrationError
from vqcompress.finetuning import split_prompts
from vqcompress.finetuning.presets import PRESETS
from vqcompress.recipe import Calibration
from vqcompress.shapes.scenes import held_out_captions


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["shapes", "general"])
def test_four_uses_of_prompts_share_none(name, preset):
    prompts, size = load_prompts(name).prompts, PRESETS[preset]
    evaluation = held_out_captions(48) if name == "shapes" else load_prompts("general_heldout").prompts
    calibration = prompts[: Calibration().count]  # which ones does not matter here, and clustering takes seconds
    split = split_prompts(prompts, calibration, size.prompts, size.held_out, seed=0)
    uses = [set(calibration), set(split.train), set(split.held_out), set(evaluation)]
    assert all(uses)
    assert sum(map(len, uses)) == len(set().union(*uses))


def test_a_run_s_own_calibration_prompts_are_left_out():
    prompts = [f"prompt {index}" for index in range(40)]
    used = choose_diverse(prompts, 10, seed=0)
    split = split_prompts(prompts, used, 100, 10, seed=0)
    assert len(split.train) + len(split.held_out) <= 30
    assert not set(used) & {*split.train, *split.held_out}
    assert split_prompts(prompts, used, 100, 10, seed=0) == split
    assert split_prompts(prompts, used, 100, 10, seed=1) != split


def test_too_few_prompts_are_refused_with_the_way_out():
    with pytest.raises(CalibrationError, match="larger prompt set"):
        split_prompts(["a", "b", "c"], ["a", "b"], 10, 2, seed=0)
