"""Scenes, captions and images: reproducible, readable back, and split into disjoint parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vqcompress.shapes.caption_parser import CaptionError, parse_caption
from vqcompress.shapes.render import coverage, render
from vqcompress.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    GAP,
    KINDS,
    RADII,
    SHAPES,
    Scene,
    calibration_captions,
    caption,
    held_out_captions,
    monitor_captions,
    sample_scenes,
    split_of,
)

PROMPTS = Path(__file__).parents[2] / "calib_prompts" / "shapes.txt"


def scenes(count: int = 300, seed: int = 3) -> list[Scene]:
    return list(sample_scenes(count, seed))


def test_one_seed_gives_the_same_scenes_and_images() -> None:
    first, second = scenes(40), scenes(40)
    assert first == second
    assert all(np.array_equal(render(a), render(b)) for a, b in zip(first, second, strict=True))
    assert scenes(40, seed=4) != first


def test_the_world_is_fully_visited() -> None:
    drawn = scenes(600)
    items = [item for scene in drawn for item in scene.items]
    assert {item.shape for item in items} == set(SHAPES)
    assert {item.color for item in items} == set(COLORS)
    assert {item.size for item in items} == set(RADII)
    assert {scene.background for scene in drawn} == set(BACKGROUNDS)
    assert {scene.kind for scene in drawn} == set(KINDS)
    assert {len(scene.items) for scene in drawn} == {1, 2, 3}


def test_objects_lie_on_the_canvas_and_apart() -> None:
    for scene in scenes():
        for i, a in enumerate(scene.items):
            assert min(a.x, a.y) - a.radius >= 0
            assert max(a.x, a.y) + a.radius <= 32
            for b in scene.items[:i]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + GAP


def test_a_image_is_background_where_nothing_is_drawn() -> None:
    scene = scenes(1)[0]
    image = render(scene)
    free = sum(coverage(item.shape, item.x, item.y, item.radius) for item in scene.items) == 0
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert (image[free] == BACKGROUNDS[scene.background]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_is_a_share_and_moves_with_the_object(shape: str) -> None:
    here, there = coverage(shape, 10.0, 12.0, 6.0), coverage(shape, 17.0, 15.0, 6.0)
    assert here.min() >= 0
    assert here.max() == 1
    assert np.array_equal(np.roll(here, (3, 7), (0, 1)), there)


def test_captions_say_what_the_scene_holds() -> None:
    for scene in scenes():
        content = parse_caption(caption(scene))
        assert content.background == scene.background
        assert content.objects == tuple((item.color, item.shape) for item in scene.items)
        assert content.relation == scene.relation
        assert (content.size is not None) == scene.names_size


@pytest.mark.parametrize("text", ["", "a cat", "a red circle", "four red circles on a gray background"])
def test_other_sentences_are_refused(text: str) -> None:
    with pytest.raises(CaptionError, match="no caption of a shapes scene"):
        parse_caption(text)


def test_caption_sets_are_disjoint_and_never_trained_on() -> None:
    held_out, monitor, calibration = held_out_captions(), monitor_captions(), calibration_captions()
    sets = [set(held_out), set(monitor), set(calibration)]
    assert [len(s) for s in sets] == [200, 96, 640]
    assert len(set.union(*sets)) == 936
    trained = {caption(scene) for scene in sample_scenes(2000, 0, "train")}
    assert not trained & set.union(*sets)
    assert {split_of(text) for text in held_out} == {"held-out"}


def test_the_prompt_file_is_what_its_command_writes() -> None:
    assert PROMPTS.read_text().splitlines() == calibration_captions()


def test_listed_objects_lie_in_reading_order() -> None:
    drawn = list(sample_scenes(600, 3))
    for scene in drawn:
        if scene.kind == "pair" or (scene.kind == "count" and len(scene.items) == 2):
            first, second = scene.items
            dx, dy = second.x - first.x, second.y - first.y
            assert max(dx, dy) >= 2 * min(abs(dx), abs(dy))


def test_three_objects_are_one_beside_a_row_of_two() -> None:
    for scene in sample_scenes(600, 3):
        if len(scene.items) == 3:
            heights = sorted(item.y for item in scene.items)
            upper, lower = heights[1] - heights[0], heights[2] - heights[1]
            assert max(upper, lower) > 7 > 5 > min(upper, lower)
